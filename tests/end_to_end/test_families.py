"""Every model family through a run that is killed in the middle and run again."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastvideo.data import EMBEDDED_MODEL
from tests.end_to_end.commands import FastVideo
from tests.end_to_end.outputs import count, made_more_than_once, objects, wait_until

NUM_VIDEOS = 4
WITH_IMAGES = ["wan21_i2v", "wan22_i2v", "wan22_ti2v"]
REQUEST = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 8}


@pytest.fixture
def tiny_experts(tiny_wan: str, tmp_path: Path) -> str:
    """Wan2.2's layout: a second expert below a boundary."""
    folder = tmp_path / "experts"
    shutil.copytree(tiny_wan, folder)
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def request_of(model: str) -> dict[str, int]:
    """Few-step checkpoints keep their own number of steps."""
    return {**REQUEST, "num_inference_steps": 3} if model == "distilled" else REQUEST


def prompts_with_images(folder: Path) -> Path:
    """A prompt for each video; two of them share a picture."""
    lines = []
    for number in range(NUM_VIDEOS):
        picture = folder / f"{max(number, 1)}.png"
        Image.fromarray(np.random.default_rng().integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(picture)
        lines.append(json.dumps({"prompt": f"a boat in weather number {number}", "image": str(picture)}))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(lines))
    return prompts


@pytest.fixture
def distilled(tmp_path: Path) -> str:
    """The embedded weights under the pipeline of few-step checkpoints, with its own sampler and defaults."""
    folder = tmp_path / "distilled"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanDMDPipeline"}))
    (folder / "sampling_defaults.json").unlink()
    return str(folder)


@pytest.mark.parametrize("model", ["tiny_hunyuan", "tiny_experts", "distilled", *WITH_IMAGES])
def test_a_killed_run_of_a_family_goes_on(model: str, request, fastvideo: FastVideo, tmp_path: Path) -> None:
    output = tmp_path / "output"
    sampling = [word for name, value in request_of(model).items() for word in (f"--sampling.{name}", value)]
    folder = request.getfixturevalue(model)
    prompts = prompts_with_images(tmp_path) if model in WITH_IMAGES else "vbench"
    arguments = ["dataset", "run", "--model", folder, "--prompts", prompts, "--limit", NUM_VIDEOS, *sampling]
    command = fastvideo.start(*arguments, "--output", output)
    wait_until(lambda: count(output, "denoise") >= 1, poll=0.001)
    command.process.send_signal(signal.SIGKILL)
    command.finish()
    kept = objects(output)
    assert count(output, "decode") == 0, "killed too late to show anything"
    fastvideo(*arguments, "--output", output)
    now = objects(output)
    assert kept.items() <= now.items()
    assert count(output, "decode") == NUM_VIDEOS
    assert made_more_than_once(output) == []
