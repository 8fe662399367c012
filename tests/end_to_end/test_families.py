"""Every model family through a run that is killed in the middle and run again."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastvideo.data import EMBEDDED_MODEL
from tests.end_to_end.all_phases import ForkServer, exit_code
from tests.end_to_end.outputs import count, digests, made_more_than_once, objects

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


FAMILIES = ["tiny_hunyuan", "tiny_experts", "distilled", "wan21_i2v", "wan22_i2v", "wan22_ti2v"]


@pytest.mark.parametrize("model", FAMILIES)
def test_a_killed_run_of_a_family_goes_on(model: str, request, warm: ForkServer, tmp_path: Path) -> None:
    """All phases in one process: what is the flow's and torchrun's part does not differ between families."""
    config = config_of(model, request.getfixturevalue(model), tmp_path)
    assert exit_code(warm.start(config, killed=True)) == -signal.SIGKILL
    kept = objects(config["output"])
    assert exit_code(warm.start(config)) == 0
    check_goes_on(config["output"], kept)


def config_of(model: str, folder: str, place: Path) -> dict[str, Any]:
    """A run of ``model``, with a picture for each prompt where it takes one."""
    prompts = str(prompts_with_images(place)) if model in WITH_IMAGES else "vbench"
    places = {"model": folder, "prompts": prompts, "output": str(place / "output")}
    return {**places, "limit": NUM_VIDEOS, "sampling": request_of(model)}


def check_goes_on(output: str, kept: dict[str, tuple[float, str]]) -> None:
    assert not digests(kept, "decode"), "killed too late to show anything"
    assert digests(kept, "denoise"), "it ended before it was killed"
    assert kept.items() <= objects(output).items()
    assert count(output, "decode") == NUM_VIDEOS
    assert made_more_than_once(output) == []
