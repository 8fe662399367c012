"""Latents to pixel frames."""

from typing import Any

import torch
from einops import rearrange

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage


class DecodingStage(PipelineStage):
    """The VAE's frames, as they come, to the context's ``on_frames``; without it, all of them to ``batch.frames``."""

    phase = Phase.DECODE
    version = 2  # the encoder's threads and instructions are not the host's any more

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        if batch.latents is None:
            raise ValueError("latents is missing; run the denoise phase first, or load what it stored")

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.latents is not None
        sink = get_forward_context().on_frames
        assert sink is None or len(batch.latents) == 1, "frames are streamed for one sample at a time"
        device = next(self.vae.parameters()).device
        finite = torch.ones((), dtype=torch.bool, device=device)
        chunks = []
        for chunk in self.vae.decode_stream(batch.latents.to(device)):
            finite &= torch.isfinite(chunk).all()
            frames = to_uint8(chunk)
            if sink is None:
                chunks.append(frames)
            else:
                sink(frames[0].cpu())
        if not finite:
            raise FloatingPointError("decoding gave NaN or infinite pixels; try vae_precision='float32'")
        batch.frames = torch.cat(chunks, dim=1).cpu() if chunks else None
        return batch


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """``[b, c, t, h, w]`` in [-1, 1] to uint8 ``[b, t, h, w, c]``."""
    pixels = (video.float() / 2 + 0.5).clamp(0, 1) * 255
    return rearrange(pixels.round().to(torch.uint8), "b c t h w -> b t h w c").contiguous()
