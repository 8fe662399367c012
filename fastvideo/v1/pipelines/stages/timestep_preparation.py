"""The schedule of a request."""

from typing import Any

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage


class TimestepPreparationStage(PipelineStage):
    """Sets the scheduler up for the request's steps and flow shift, and writes its timesteps."""

    phase = Phase.DENOISE

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        if batch.sampling.flow_shift is not None:
            self.scheduler.set_shift(batch.sampling.flow_shift)
        self.scheduler.set_timesteps(batch.sampling.num_inference_steps, device=resolve_device(fastvideo_args.device))
        batch.timesteps = self.scheduler.timesteps
        return batch
