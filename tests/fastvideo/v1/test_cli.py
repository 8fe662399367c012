"""The commands that need no orchestration, as a user types them."""

import json
import subprocess
import sys
import time

import pytest

from fastvideo.v1.dataset.objects.video import probe
from flows.cli import run


def fastvideo(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_generate_writes_a_video_of_the_asked_size(tmp_path):
    path = tmp_path / "x.mp4"
    result = fastvideo(
        *("generate", "--prompt", "a red circle grows", "--output", str(path), "--height", "48", "--width", "80"),
        *("--num-frames", "9", "--num-inference-steps", "2", "--guidance-scale", "4", "--seed", "7", "--json"),
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["path"] == str(path) and answer["shape"] == [9, 48, 80, 3]
    assert answer["timings"]["DenoisingStage"] > 0
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (80, 48, 9, 8)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["generate", "--prompt", "x", "--num-frames", "16"],
            "num_frames=16 must be 4k+1 for this VAE; nearest: 13, 17",
        ),
        (["generate", "--prompt", "x", "--model", "/nowhere"], "model '/nowhere' is no directory here"),
        (["generate", "--prompt", " "], "prompt ' ' is empty"),
        (["generate", "--prompt", "x", "--image", "/nowhere.png"], "image '/nowhere.png' does not exist"),
        (["generate", "--prompt", "x", "--output", "/nowhere/x.mp4"], "--output='/nowhere/x.mp4' lies in"),
        (
            ["search-tiles", "--model", "m", "--prompt", "x", "--candidates", "1,1,1", "--output", "/nowhere/x.json"],
            "--output='/nowhere/x.json' lies in",
        ),
        (
            ["fit-step-skipping", "--model", "m", "--prompt", "x", "--output", "/nowhere/x"],
            "--output='/nowhere/x' lies in",
        ),
        (["bench", "plan", "--json", "/nowhere/x.json"], "--json='/nowhere/x.json' lies in"),
        (["generate", "--prompt", "x", "--flow-shift", "nan"], "flow_shift=nan must be a finite number above 0"),
        (["generate"], "the following arguments are required: --prompt"),
        (["generate", "--prompt", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(arguments, line, capsys):
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert line in err and out == "" and "Traceback" not in err
    assert len([text for text in err.splitlines() if text.startswith("fastvideo:")]) == 1


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="seed=-1"):
        run(["generate", "--prompt", "x", "--seed", "-1", "--debug"])


def test_help_comes_at_once_and_loads_nothing_heavy():
    start = time.perf_counter()
    assert "generate" in fastvideo("--help").stdout
    assert time.perf_counter() - start < 5, "half a second on an idle machine"
    code = "import sys, flows.cli; print([m for m in ('torch', 'prefect', 'diffusers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_bench_plan_prints_and_writes_figures(tmp_path):
    file = tmp_path / "figures.json"
    assert run(["bench", "plan", "--prompts", "500", "--objects", "100", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["machine"]["torch"] and len(figures) > 2
