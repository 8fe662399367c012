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


def test_more_prompts_other_video_settings_and_damaged_latents_make_what_they_ask_for_and_no_more(
    fastvideo: FastVideo, output: Path
) -> None:
    before = objects(output)
    latents = sorted(output.glob("denoise/*/*/*.safetensors"))[3]
    damaged = damage(latents)
    arguments = run_arguments(output, limit=NUM_PROMPTS + 4)
    summary = json.loads(fastvideo(*arguments, "--video.crf", "30", "--json").stdout)
    after = objects(output)
    assert {path for path in before if after[path] != before[path]} == {str(latents.relative_to(output))}
    made = [path.partition("/")[0] for path in after.keys() - before.keys()]
    assert {phase: made.count(phase) for phase in ("encode", "denoise", "decode")} == {
        "encode": 4,
        "denoise": 4,
        "decode": NUM_PROMPTS + 4,
    }
    assert digests(before, "denoise").items() <= digests(after, "denoise").items(), "the damaged one came out the same"
    assert [path.read_bytes() for path in output.glob(f"damaged/denoise/*/*/{latents.name}.*")] == [damaged]
    assert summary["published"]["num_rows"] == NUM_PROMPTS + 4
    videos = {path: path.stat().st_size for path in output.glob("decode/*/*/*.mp4")}
    old = {path.name: size for path, size in videos.items() if str(path.relative_to(output)) in before}
    new = {path.name: size for path, size in videos.items() if str(path.relative_to(output)) not in before}
    assert sum(new[name] for name in old) < sum(old.values())


def damage(file: Path) -> bytes:
    """Flips a bit of ``file``; returns what is in it now."""
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    return bytes(data)
