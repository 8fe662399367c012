"""A generator's adapter can be changed and taken off without loading the model again."""

import torch
from safetensors.torch import save_file

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL

REQUEST = {"num_inference_steps": 2, "num_frames": 5, "guidance_scale": 1.0}


def test_an_adapter_shows_in_the_frames_and_leaves_no_trace(tmp_path):
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, device="cpu")
    frames = generator.generate_video("a red circle", **REQUEST).frames
    width = generator.executor.worker.pipeline.get_module("transformer").config.hidden_size
    name = "transformer.blocks.0.attn1.to_v.lora"
    path = str(tmp_path / "adapter.safetensors")
    save_file({f"{name}_A.weight": torch.randn(2, width), f"{name}_B.weight": torch.randn(width, 2)}, path)
    generator.set_lora(path, 0.5)
    adapted = generator.generate_video("a red circle", **REQUEST).frames
    merged = VideoGenerator.from_pretrained(
        EMBEDDED_MODEL, device="cpu", lora_path=path, lora_scale=0.5
    ).generate_video("a red circle", **REQUEST)
    assert (adapted.int() - merged.frames.int()).abs().max() <= 2 and not torch.equal(adapted, frames)
    generator.set_lora(None)
    assert torch.equal(generator.generate_video("a red circle", **REQUEST).frames, frames)
