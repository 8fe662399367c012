"""Running again makes what is missing, changed or damaged, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.commands import NUM_PROMPTS, FastVideo, run_arguments
from tests.end_to_end.outputs import digests, objects


@pytest.fixture
def output(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, times included."""
    return shutil.copytree(undisturbed, tmp_path / "output")


def test_nothing_is_missing_so_nothing_runs(fastvideo: FastVideo, output: Path) -> None:
    before = objects(output)
    fastvideo(*run_arguments(output))
    assert objects(output) == before


def test_other_video_settings_decode_again_and_no_more(fastvideo: FastVideo, output: Path) -> None:
    before = objects(output)
    summary = json.loads(fastvideo(*run_arguments(output), "--video.crf", "30", "--json").stdout)
    after = objects(output)
    assert before.items() <= after.items()
    made = after.keys() - before.keys()
    assert len(made) == NUM_PROMPTS and all(path.startswith("decode/") for path in made)
    assert summary["phases"]["decode"]["bytes"] < sum(
        Path(output, path).stat().st_size for path in before if ".mp4" in path
    )


def test_ten_more_prompts_make_ten_more_videos(fastvideo: FastVideo, output: Path) -> None:
    before = objects(output)
    summary = json.loads(fastvideo(*run_arguments(output, limit=NUM_PROMPTS + 10), "--json").stdout)
    after = objects(output)
    assert before.items() <= after.items()
    assert [len(digests(after, phase)) - len(digests(before, phase)) for phase in ("encode", "denoise", "decode")] == [
        10
    ] * 3
    assert summary["new"] == 10 and summary["published"]["num_rows"] == NUM_PROMPTS + 10


def test_damaged_latents_are_set_aside_and_made_again(fastvideo: FastVideo, output: Path) -> None:
    before = objects(output)
    latents = sorted(output.glob("denoise/*/*/*.safetensors"))[3]
    [video] = output.glob(f"decode/*/*/{latents.stem}.mp4")
    data = bytearray(latents.read_bytes())
    data[-100] ^= 1
    latents.write_bytes(data)
    video.unlink()
    fastvideo(*run_arguments(output))
    after = objects(output)
    assert [path.read_bytes() for path in output.glob(f"damaged/denoise/*/*/{latents.name}.*")] == [data]
    assert {path for path in before if after[path] != before[path]} == {
        str(p.relative_to(output)) for p in (latents, video)
    }
    assert digests(after, "denoise") == digests(before, "denoise")
