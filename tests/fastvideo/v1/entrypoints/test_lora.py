"""A generator's adapter can be changed and taken off without loading the model again."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.worker import gpu_worker

REQUEST = {"num_inference_steps": 2, "num_frames": 5, "guidance_scale": 1.0}


def write_adapter(folder: Path, width: int) -> str:
    name, path = "transformer.blocks.0.attn1.to_v.lora", str(folder / "adapter.safetensors")
    save_file({f"{name}_A.weight": torch.randn(2, width), f"{name}_B.weight": torch.randn(width, 2)}, path)
    return path


def test_an_adapter_shows_in_the_frames_and_leaves_no_trace(tmp_path):
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, device="cpu")
    frames = generator.generate_video("a red circle", **REQUEST).frames
    path = write_adapter(tmp_path, generator.executor.worker.pipeline.get_module("transformer").config.hidden_size)
    generator.set_lora(path, 0.5)
    adapted = generator.generate_video("a red circle", **REQUEST).frames
    merged = VideoGenerator.from_pretrained(
        EMBEDDED_MODEL, device="cpu", lora_path=path, lora_scale=0.5
    ).generate_video("a red circle", **REQUEST)
    assert (adapted.int() - merged.frames.int()).abs().max() <= 2 and not torch.equal(adapted, frames)
    generator.set_lora(None)
    assert torch.equal(generator.generate_video("a red circle", **REQUEST).frames, frames)


def test_an_adapter_lies_where_the_work_is_done_though_the_weights_are_away(tmp_path, monkeypatch):
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, device="cpu")
    transformer = generator.executor.worker.pipeline.get_module("transformer")
    monkeypatch.setattr(gpu_worker, "resolve_device", lambda choice: torch.device("meta"))
    generator.set_lora(write_adapter(tmp_path, transformer.config.hidden_size))
    branch = transformer.blocks[0].attn1.to_qkv.branch
    assert (branch.down.device.type, branch.up.device.type) == ("meta", "meta")
    assert branch.down.dtype is branch.up.dtype is transformer.blocks[0].attn1.to_qkv.weight.dtype
