"""The noise that a sample starts from."""

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.sampling_params import SamplingParams


class LatentPreparationStage(PipelineStage):
    """Gaussian noise from a CPU generator for each sample's seed, so that it is the same on every device and layout.

    ``in_channels`` are those that the transformer denoises; ``spatial_factor`` and ``temporal_factor`` the VAE's:
    pixels to a latent, pixel frames to a latent frame. A batch that already has latents (a resumed one) keeps them.
    """

    phase = Phase.DENOISE

    def __init__(self, in_channels: int, spatial_factor: int, temporal_factor: int) -> None:
        self.in_channels = in_channels
        self.spatial_factor = spatial_factor
        self.temporal_factor = temporal_factor

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        if batch.latents is None and not batch.seeds:
            raise ValueError("seeds is empty; give one for each prompt")

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        device = resolve_device(fastvideo_args.device)
        if batch.latents is None:
            shape = self.latent_shape(batch.sampling)
            noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in batch.seeds]
            batch.latents = torch.stack(noise)
        batch.latents = batch.latents.to(device)
        return batch

    def latent_shape(self, sampling: SamplingParams) -> tuple[int, int, int, int]:
        """``(c, t, h, w)`` of one sample's latents."""
        frames = (sampling.num_frames - 1) // self.temporal_factor + 1
        return self.in_channels, frames, sampling.height // self.spatial_factor, sampling.width // self.spatial_factor
