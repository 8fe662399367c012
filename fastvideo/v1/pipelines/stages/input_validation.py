"""Turns a request away before any model works on it."""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.sampling_params import CanvasRule


class InputValidationStage(PipelineStage):
    """Checks that prompts and seeds fit together, and the size by ``canvas``, the model's rule if it has one."""

    phase = Phase.ENCODE

    def __init__(self, canvas: CanvasRule | None = None) -> None:
        self.canvas = canvas

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        for name, values in (("seeds", batch.seeds), ("negative_prompt", batch.negative_prompt)):
            if values and len(values) != len(batch.prompt):
                raise ValueError(f"{len(values)} {name} for {len(batch.prompt)} prompts; give one each")
        if self.canvas is not None:
            self.canvas.check(batch.sampling.height, batch.sampling.width, batch.sampling.num_frames)
        return batch
