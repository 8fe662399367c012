"""Turns a request away before any model works on it."""

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.pipelines.inputs import ImageUse
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.sampling_params import CanvasRule, GuidanceMode


class InputValidationStage(PipelineStage):
    """Checks that prompts, seeds and images fit together, the size by ``canvas``, the model's rule if it has one,
    ``image``: whether the model needs one, and ``guidance_mode``: the one that it knows, if not both. In a part of a
    request it looks at what there is.
    """

    phase = Phase.ENCODE

    def __init__(
        self,
        canvas: CanvasRule | None = None,
        image: ImageUse = "refused",
        guidance_mode: GuidanceMode | None = None,
    ) -> None:
        self.canvas = canvas
        self.image = image
        self.guidance_mode = guidance_mode

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        if get_forward_context().inputs is None:
            self._check_whole(batch)
        if self.canvas is not None:
            self.canvas.check(batch.sampling.height, batch.sampling.width, batch.sampling.num_frames)
        if self.guidance_mode not in (None, mode := batch.sampling.guidance_mode):
            raise ValueError(f"guidance_mode={mode!r} must be {self.guidance_mode!r} for this model; leave it out")
        for image in batch.image or ():
            if image.dtype is not torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"image of {image.dtype} {list(image.shape)} must be uint8 [height, width, 3]")
        return batch

    def _check_whole(self, batch: ForwardBatch) -> None:
        given = (("seeds", batch.seeds), ("negative_prompt", batch.negative_prompt), ("image", batch.image))
        for name, values in given:
            if values and len(values) != len(batch.prompt):
                raise ValueError(f"{len(values)} {name} for {len(batch.prompt)} prompts; give one each")
        if batch.image is None and self.image == "required":
            raise ValueError("image is missing: this model makes a video of an image and a prompt; give both")
        if batch.image is not None and self.image == "refused":
            raise ValueError(
                "image was given, but this model makes videos of prompts alone; leave it out, or take an "
                "image-to-video checkpoint"
            )
