"""The schedule of a request."""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.models.schedulers.base import Scheduler
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage


class TimestepPreparationStage(PipelineStage):
    """Sets the scheduler up for the request's steps and flow shift, and writes its timesteps."""

    phase = Phase.DENOISE

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._checkpoint_shift = None if scheduler is None else scheduler.shift  # no scheduler where it is not built

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert self._checkpoint_shift is not None, "this stage was built without its scheduler"
        shift = batch.sampling.flow_shift
        self.scheduler.set_shift(self._checkpoint_shift if shift is None else shift)
        self.scheduler.set_request(batch.sampling, batch.seeds)
        self.scheduler.set_timesteps(batch.sampling.num_inference_steps, device=resolve_device(fastvideo_args.device))
        batch.timesteps = self.scheduler.timesteps
        return batch
