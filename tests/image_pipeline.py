"""A user's pipeline of an image and a prompt: the image's mean colour tints the latents."""

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import PipelineStage
from fastvideo.v1.pipelines.wan import WanPipeline


class TintEncodingStage(PipelineStage):
    phase = Phase.ENCODE
    reads = IMAGE_INPUT

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.image is not None
        batch.custom["tint"] = torch.stack([image.float().mean() / 255 for image in batch.image])
        batch.custom["frames"] = batch.sampling.num_frames
        return batch


class TintingStage(PipelineStage):
    phase = Phase.DENOISE

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.custom["frames"] == batch.sampling.num_frames
        batch.latents = batch.latents + batch.custom["tint"][:, None, None, None, None]
        return batch


class TintedPipeline(WanPipeline):
    image_use = "required"

    def add_image_stages(self) -> None:
        self.add_stage("tint_encoding_stage", TintEncodingStage())

    def add_denoising_stages(self) -> None:
        super().add_denoising_stages()
        self.add_stage("tinting_stage", TintingStage())
