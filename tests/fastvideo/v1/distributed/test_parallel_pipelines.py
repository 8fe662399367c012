"""Latents of the denoising loop in layouts that share it among 2 and 4 processes, against those of one process."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.v1.distributed.parallel_state import close_world, init_world
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

TOLERANCE = 1e-5  # max|a - b| / max|b|
NUM_PROCESSES = 4
LAYOUTS: list[dict[str, int]] = [
    {"tp_size": 2},
    {"sp_size": 2},
    {"sp_size": 2, "ring_size": 2},
    {"cfg_size": 2},
    {"sp_size": 4, "ring_size": 2},
    {"sp_size": 2, "ring_size": 2, "tp_size": 2},
    {"sp_size": 2, "cfg_size": 2},
    {"sp_size": 2, "ring_size": 2, "cfg_size": 2},
    {"tp_size": 2, "cfg_size": 2},
]  # two samples side by side where a sample has two processes
Written = list[tuple[dict[str, Any], ForwardBatch, torch.Tensor]]


def denoised(arguments: dict[str, Any], batch: ForwardBatch, **sizes: int) -> torch.Tensor:
    latents = build_pipeline(FastVideoArgs(**arguments, **sizes), (Phase.DENOISE,)).forward(batch).latents
    assert latents is not None
    return latents


def encoded(arguments: dict[str, Any], **request: Any) -> ForwardBatch:
    pipeline = build_pipeline(FastVideoArgs(**arguments), (Phase.ENCODE,))
    params = pipeline.sampling_defaults().with_overrides(num_inference_steps=3, **request)
    return pipeline.forward(ForwardBatch(prompt=["a tree in the wind"], seeds=[params.seed], sampling=params))


def check_layouts(rank: int, path: Path) -> None:
    for sizes in LAYOUTS:
        written: Written = torch.load(path, weights_only=False)  # anew: a call leaves its mark on a batch
        args = FastVideoArgs(num_gpus=NUM_PROCESSES, **sizes)
        init_world(args.layout, "cpu", TIMEOUT)
        for arguments, batch, expected in written:
            is_sliding_in_ring = "attention_backend" in arguments and "ring_size" in sizes
            if is_sliding_in_ring:
                with pytest.raises(ValueError, match="set ring_size to 1"):
                    denoised(arguments, batch, num_gpus=NUM_PROCESSES, **sizes)
                continue
            latents = denoised(arguments, batch, num_gpus=NUM_PROCESSES, **sizes)
            error = ((latents - expected).abs().max() / expected.abs().max()).item()
            assert error < TOLERANCE, (sizes, arguments, error)
        close_world()


@pytest.fixture
def strategy(tmp_path) -> str:
    """Windows for two layers of two heads, each head with its own, three steps."""
    windows = {0: [1, 1, 1], 1: [1, 3, 3]}
    path = tmp_path / "strategy.json"
    keys = product(range(3), range(2), windows)
    path.write_text(json.dumps({f"{step}_{layer}_{head}": windows[head] for step, layer, head in keys}))
    return str(path)


@pytest.mark.slow
def test_latents_in_every_layout_agree_with_one_process(tiny_wan, tiny_hunyuan, strategy, tmp_path, fresh_seed):
    sliding = {"attention_backend": "SLIDING_TILE_ATTN", "sliding_tile_strategy": strategy}
    written: Written = []
    for model, engine, canvas in [
        (tiny_wan, {}, {"height": 48, "width": 80, "num_frames": 9, "guidance_scale": 4.0}),
        (tiny_wan, sliding, {"height": 272, "width": 144, "num_frames": 5, "guidance_scale": 4.0}),
        (tiny_hunyuan, {}, {"height": 48, "width": 80, "num_frames": 9}),
    ]:
        arguments = {"model_path": model, "device": "cpu", **engine}
        torch.save(encoded(arguments, **canvas, seed=fresh_seed), tmp_path / "batch.pt")
        batch, again = (torch.load(tmp_path / "batch.pt", weights_only=False) for _ in range(2))
        written.append((arguments, batch, denoised(arguments, again)))
    torch.save(written, tmp_path / "cases.pt")
    run_processes(NUM_PROCESSES, check_layouts, tmp_path / "cases.pt")
