"""A denoise job whose forwards are timed, as :func:`~fastvideo.v1.worker.torchrun.launch` starts it.

It is the stage job's own walk over a shard; hooks on the transformer note when each forward began and ended on the
device. Beside the stage job's events each rank prints two of its own: ``first_step`` and ``metered``.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing.errors import record

from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.process import die_with_parent
from fastvideo.v1.worker.stage_job import emit, engine_settings, run_stage_job


class _Mark:
    """A moment on the device: a CUDA event, or the clock on a CPU."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_available() else None
        self._clock = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def until(self, later: "_Mark") -> float:
        """Seconds; both have been reached."""
        if self._event is None or later._event is None:
            return later._clock - self._clock
        return self._event.elapsed_time(later._event) / 1000


@dataclass
class _Forward:
    sample: int
    began: _Mark
    ended: _Mark


class MeteredWorker(GPUWorker):
    """A worker that notes its transformer's forwards, and when loading and the first step ended."""

    def __init__(self, fastvideo_args: FastVideoArgs, phases: Sequence[Phase]) -> None:
        super().__init__(fastvideo_args, phases)
        self.started = psutil.Process().create_time()
        self.forwards: list[_Forward] = []
        self.num_samples = 0
        self.loaded_at = self.first_step_at = 0.0

    def load(self) -> None:
        super().load()
        transformer = self.pipeline.get_module("transformer")
        transformer.register_forward_pre_hook(lambda *_: self.forwards.append(_begin(self.num_samples)))
        transformer.register_forward_hook(lambda *_: self._end())
        self.loaded_at = time.time()

    def execute_forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        assert context is not None and context.on_step is not None, "a denoise job watches its steps"
        self.num_samples += 1
        if self.first_step_at:
            return super().execute_forward(batch, context)
        on_step = context.on_step

        def note(state: ForwardBatch) -> None:
            if not self.first_step_at:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.first_step_at = time.time()
                emit("first_step", rank=self.rank, step=state.step_index)
            on_step(state)

        return super().execute_forward(batch, replace(context, on_step=note))

    def _end(self) -> None:
        self.forwards[-1].ended = _Mark()

    def figures(self) -> dict[str, Any]:
        """Seconds from the start of the process, and what the device did from the second sample's first forward on.

        The first sample compiles kernels and warms up. All that is no forward counts as idle, the scheduler's few
        kernels too.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        warm = [forward for forward in self.forwards if forward.sample > 1] or self.forwards
        wall = warm[0].began.until(warm[-1].ended)
        busy = sum(forward.began.until(forward.ended) for forward in warm)
        gaps: dict[bool, list[float]] = {True: [], False: []}
        for before, after in pairwise(warm):
            gaps[before.sample == after.sample].append(before.ended.until(after.began))
        return {
            "loaded_seconds": self.loaded_at - self.started,
            "first_step_seconds": self.first_step_at - self.started,
            "samples": len({forward.sample for forward in warm}),
            "forwards": len(warm),
            "forward_ms": 1e3 * busy / len(warm),
            "wall_seconds": wall,
            "idle_share": 1 - busy / wall,
            "gap_in_sample_ms": 1e3 * sum(gaps[True]) / max(1, len(gaps[True])),
            "gap_between_samples_ms": 1e3 * sum(gaps[False]) / max(1, len(gaps[False])),
        }


def _begin(sample: int) -> _Forward:
    mark = _Mark()
    return _Forward(sample, mark, mark)


@record
def main() -> None:
    """Runs the job that :mod:`fastvideo.v1.entrypoints.bench.pipeline` has prepared."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="metered_job", description=__doc__)
    for name in ("--output", "--run", "--shard"):
        parser.add_argument(name, required=True)
    parser.add_argument("--engine", required=True, type=json.loads, help="JSON of FastVideoArgs")
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON of JobSettings")
    options = parser.parse_args()
    run = open_run(options.output, options.run)
    worker = MeteredWorker(engine_settings(run, options.engine), (Phase.DENOISE,))
    run_stage_job(run, Phase.DENOISE, options.shard, worker, JobSettings(**options.settings))
    emit("metered", device=worker.device_name, **worker.figures())


if __name__ == "__main__":
    main()
