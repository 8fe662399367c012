"""Where a result goes is looked at before the work, and named with what is wrong."""

from pathlib import Path

import pytest

from fastvideo.v1.output_file import check_output_file


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("videos.mp4", "is a folder"),
        ("x.avi", "does not end in .mp4"),
        ("x", "does not end in .mp4"),
        ("gone/x.mp4", "gone', which is no folder"),
        ("s3://bucket/x.mp4", "which is no folder of this machine"),
        ("kept.mp4", "may not be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_named_before_the_work(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("videos.mp4").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "kept.mp4")  # root may write anywhere
    Path("kept.mp4").touch()
    with pytest.raises(ValueError, match=f"output_path='{name}' .*{reason}.*; name a file \\*.mp4 in a folder"):
        check_output_file("output_path", name, ".mp4")
    check_output_file("output_path", "videos.mp4/x.MP4", ".mp4")
