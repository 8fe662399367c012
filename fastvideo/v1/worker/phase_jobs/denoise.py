"""Embeddings to latents."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fastvideo.v1.dataset.layout import input_path, latents_path, step_path
from fastvideo.v1.dataset.objects.state_file import DamagedObject, pack_state, unpack_state
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import Sample, image_input_id, input_id
from fastvideo.v1.distributed.communication import barrier
from fastvideo.v1.distributed.parallel_state import get_control_group
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.logger import init_logger
from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.failures import Preempted
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs.base import JobSettings, Product, SampleJob

logger = init_logger(__name__)


class DenoiseJob(SampleJob):
    """Embeddings to latents; a long sample's state is saved every few steps, and when the job has to leave."""

    phase = Phase.DENOISE

    def __init__(self, run: Run, worker: GPUWorker, settings: JobSettings, is_stopping: Callable[[], bool]) -> None:
        super().__init__(run, worker, settings, is_stopping)
        self._with_steps: set[str] = set()  # ids of which a loop's state is stored
        self._saver = ThreadPoolExecutor(1, "saver")  # writes and removes them, in order
        self._saves: list[Future[None]] = []  # those that it was given and whose end nobody has seen

    def path(self, item: Sample) -> str:
        return latents_path(self.run.keys[Phase.DENOISE], item.id)

    def fetch(self, item: Sample) -> ForwardBatch:
        sampling = item.sampling(self.run.sampling)
        batch = ForwardBatch(prompt=[item.prompt], seeds=[item.seed], sampling=sampling)
        key = self.run.keys[Phase.ENCODE]
        import_sample(batch, *self._read_state(input_path(key, input_id({"prompt": item.prompt}))))
        if batch.do_classifier_free_guidance:
            negative = self._read_state(input_path(key, input_id({"prompt": item.negative_prompt})))
            import_sample(batch, *negative, prefix="negative_")
        if item.image is not None:
            canvas = (sampling.height, sampling.width, sampling.num_frames)
            import_sample(batch, *self._read_state(input_path(key, image_input_id(item.image, *canvas))))
        self._restore(item, batch)
        return batch

    def make(self, items: Sequence[Sample], inputs: Sequence[ForwardBatch]) -> Iterator[Product]:
        (item,), (batch,) = items, inputs
        started = time.time()
        context = ForwardContext(on_step=lambda state: self._after_step(item, state))
        batch = self.worker.execute_forward(batch, context)
        state = export_sample(batch, self.worker.pipeline.hands_on[Phase.DENOISE], 0)
        yield Product(item.id, self.path(item), pack_state(*state), started, time.time() - started)

    def clean_up(self, item: Sample) -> None:
        if item.id in self._with_steps:
            self._saver.submit(self.run.objects.delete, self._step_path(item)).result()  # after all of its saves
            self._see_saves()
            self._with_steps.discard(item.id)

    def _after_step(self, item: Sample, batch: ForwardBatch) -> None:
        assert batch.timesteps is not None
        if batch.step_index == len(batch.timesteps):
            return
        self.heartbeat.beat()
        every = self.settings.checkpoint_every
        stopping = self.is_stopping()
        if self.leads and (stopping or (every and batch.step_index % every == 0)):
            self._save(item, batch, is_last=stopping)
        if stopping:
            barrier(get_control_group())  # the first rank that leaves ends the job, and must not cut the saving short
            raise Preempted(f"left sample {item.id} after step {batch.step_index} of {len(batch.timesteps)}")

    def _save(self, item: Sample, batch: ForwardBatch, is_last: bool) -> None:
        """Stores the loop's state: beside the steps that follow, which do not depend on it, or before the job leaves.

        One that still waits for the store has had its day.
        """
        assert batch.latents is not None and batch.scheduler_state is not None
        tensors: dict[str, torch.Tensor] = {"latents": batch.latents}
        scalars: dict[str, int | float] = {"step_index": batch.step_index}
        for owner, state in (("scheduler", batch.scheduler_state), ("skipping", batch.skipping_state or {})):
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{owner}.{name}"] = value
                else:
                    scalars[f"{owner}.{name}"] = value
        data = pack_state(tensors, scalars)
        self._with_steps.add(item.id)
        for waiting in self._saves:
            waiting.cancel()
        self._see_saves()
        self._saves = [save for save in self._saves if not save.done()]
        self._saves.append(self._saver.submit(self._store_steps, item, data, is_last))
        if is_last:
            self._saves[-1].result()

    def _see_saves(self) -> None:
        """Raises what those that have ended met with, but for a store that was away. Two threads ask."""
        for save in [*self._saves]:
            if save.done() and not save.cancelled():
                save.result()

    def _store_steps(self, item: Sample, data: bytes, is_last: bool) -> None:
        try:
            self.run.objects.overwrite(self._step_path(item), data)
        except StoreUnavailable as error:
            if is_last:
                raise
            logger.warning("the steps of sample %s are not saved; it goes on: %s", item.id, error)

    def _restore(self, item: Sample, batch: ForwardBatch) -> None:
        try:
            tensors, scalars = unpack_state(self.run.objects.read(self._step_path(item)), item.id)
        except FileNotFoundError:
            return
        except DamagedObject as error:
            logger.warning("%s; the sample starts over", error)
            return
        self._with_steps.add(item.id)
        batch.latents, batch.step_index = tensors.pop("latents"), scalars.pop("step_index")
        batch.scheduler_state = _part_of("scheduler.", tensors, scalars)
        batch.skipping_state = _part_of("skipping.", tensors, scalars) or None
        logger.info("sample %s goes on after step %d", item.id, batch.step_index)

    def _step_path(self, item: Sample) -> str:
        return step_path(self.run.keys[Phase.DENOISE], item.id)


def _part_of(prefix: str, tensors: dict[str, torch.Tensor], scalars: dict[str, int | float]) -> SchedulerState:
    state: SchedulerState = {**tensors, **scalars}
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
