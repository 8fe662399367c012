"""Approximate modes through the whole pipeline: chosen by name, refused where they do not fit."""

import json
from pathlib import Path

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs

STEPS = 2
TILES = {"height": 256, "width": 256, "num_frames": 5, "num_inference_steps": STEPS, "seed": 5}  # 1 x 2 x 2 tiles


def make_video(request: dict[str, int], **args) -> torch.Tensor:
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, device="cpu", **args)
    return generator.generate_video("a red circle moves right", **request).frames.double()


def write_strategy(path: Path, window: tuple[int, int, int], steps: int = STEPS) -> str:
    """One window for every step, layer and head of the embedded model."""
    config = json.loads((Path(EMBEDDED_MODEL) / "transformer" / "config.json").read_text())
    places = (
        f"{step}_{layer}_{head}"
        for step in range(steps)
        for layer in range(config["num_layers"])
        for head in range(config["num_attention_heads"])
    )
    path.write_text(json.dumps(dict.fromkeys(places, window)))
    return str(path)


def test_windows_of_the_whole_canvas_make_the_exact_video_and_narrow_ones_another(tmp_path):
    exact = make_video(TILES)
    videos = []
    for name, window in (("full", (1, 2, 2)), ("narrow", (1, 1, 1))):
        strategy = write_strategy(tmp_path / f"{name}.json", window)
        videos.append(make_video(TILES, attention_backend="SLIDING_TILE_ATTN", sliding_tile_strategy=strategy))
    assert torch.equal(videos[0], exact)
    assert not torch.equal(videos[1], exact)


def test_eight_bits_make_another_video():
    request = {"num_inference_steps": 2, "seed": 5}
    assert not torch.equal(make_video(request, quantization="fp8"), make_video(request))


def test_a_strategy_for_other_steps_is_refused(tmp_path):
    strategy = write_strategy(tmp_path / "long.json", (1, 1, 1), steps=3)
    with pytest.raises(ValueError, match="is for 3 steps, not num_inference_steps=2; run as many as it has"):
        make_video(TILES, attention_backend="SLIDING_TILE_ATTN", sliding_tile_strategy=strategy)


def test_a_strategy_and_its_backend_go_together():
    with pytest.raises(ValueError, match="is for attention_backend SLIDING_TILE_ATTN, not None; set both or neither"):
        FastVideoArgs(sliding_tile_strategy="windows.json")
    with pytest.raises(ValueError, match="needs a strategy"):
        make_video(TILES, attention_backend="SLIDING_TILE_ATTN")
