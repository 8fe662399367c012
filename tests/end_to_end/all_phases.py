"""A whole data-set run in one process, without flows and torchrun."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fastvideo.v1.dataset.config import parse_config
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.publishing.publish import publish
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.worker import stage_job
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings


class ForkServer:
    """Starts runs in processes that have imported already what each of them needs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "diffusers", "transformers", "torch._dynamo"])

    def start(self, config: dict[str, Any], killed: bool = False, env: Mapping[str, str] | None = None) -> BaseProcess:
        """``killed`` once the first latents are there: by SIGKILL, while the next are made."""
        process = self._context.Process(target=_run, args=(config, killed, env or {}))
        process.start()
        return process


def exit_code(process: BaseProcess) -> int | None:
    """Of a run, once it has ended."""
    process.join()
    return process.exitcode


def _run(values: dict[str, Any], killed: bool, env: Mapping[str, str]) -> None:
    os.environ |= env
    torch.set_num_threads(1)
    config = parse_config(values)
    for phase in ALL_PHASES:
        plan = plan_run(config)
        if killed and phase is Phase.DENOISE:
            stage_job.emit = _die_at_the_first_commit
        for shard in write_shards(plan.run, plan.scan, config, 1):
            if shard.phase is phase:
                worker = GPUWorker(stage_job.engine_settings(plan.run, {"device": "cpu"}), [phase])
                stage_job.run_stage_job(plan.run, phase, shard.path, worker, JobSettings())
    publish(plan.run)


def _die_at_the_first_commit(event: str, **_: Any) -> None:
    if event == "committed":
        os.kill(os.getpid(), signal.SIGKILL)
