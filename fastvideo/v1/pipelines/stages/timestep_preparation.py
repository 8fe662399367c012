"""The schedule of a request."""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.models.schedulers.base import Scheduler
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage


class TimestepPreparationStage(PipelineStage):
    """Sets the scheduler up for the request's steps and flow shift, and writes its timesteps.

    With ``even_sigmas`` the noise levels before the shift are spread evenly from 1 down to one step above 0; else the
    scheduler chooses them.
    """

    phase = Phase.DENOISE

    def __init__(self, scheduler: Scheduler, even_sigmas: bool = False) -> None:
        self.scheduler = scheduler
        self.even_sigmas = even_sigmas
        self._checkpoint_shift = None if scheduler is None else scheduler.shift  # no scheduler where it is not built

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert self._checkpoint_shift is not None, "this stage was built without its scheduler"
        shift = batch.sampling.flow_shift
        self.scheduler.set_shift(self._checkpoint_shift if shift is None else shift)
        self.scheduler.set_request(batch.sampling, batch.seeds)
        steps, device = batch.sampling.num_inference_steps, resolve_device(fastvideo_args.device)
        sigmas = [1.0 - step / steps for step in range(steps)] if self.even_sigmas else None
        self.scheduler.set_timesteps(steps, device=device, sigmas=sigmas)
        batch.timesteps = self.scheduler.timesteps
        return batch
