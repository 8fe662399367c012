"""Wan's pipeline with a stage of our own between the noise and the loop."""

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import PipelineStage
from fastvideo.v1.pipelines.wan import WanPipeline


class MirrorNoiseStage(PipelineStage):
    """Makes the noise its own mirror image, at the same variance."""

    phase = Phase.DENOISE

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.latents is not None
        if batch.step_index == 0:
            left, right = batch.latents.chunk(2, dim=-1)
            left = (left + right) / 2**0.5
            batch.latents = torch.cat((left, left.flip(-1)), dim=-1)
        return batch


class MirroredPipeline(WanPipeline):
    """Text in, a symmetric video out."""

    def add_stage(self, name: str, stage: PipelineStage, phase: Phase | None = None) -> None:
        super().add_stage(name, stage, phase)
        if name == "latent_preparation_stage":
            super().add_stage("mirror_noise_stage", MirrorNoiseStage())
