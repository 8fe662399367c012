"""`fastvideo bench recovery`: a rank is killed within a step that all GPUs share, and its shard started again."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil

from fastvideo.v1.entrypoints.bench.pipeline import checkpoint, plan_shard, run_metered
from fastvideo.v1.worker.failures import JobFailed

_SECONDS_INTO_STEPS = 3.0
_CHECKPOINT_EVERY = 2


def bench_recovery(
    model: str, num_layers: int | None, sampling: Mapping[str, Any], folder: str | None, num_gpus: int
) -> dict[str, Any]:
    """Seconds from the kill of one rank until no process is left, and until the same shard does its next step.

    One sample on ``num_gpus`` (Ulysses), saved every second step; other arguments as for ``bench pipeline``. It needs
    enough steps to be under way for seconds.
    """
    if num_gpus < 2:
        raise ValueError(f"num_gpus={num_gpus} must be at least 2: the others wait for the one that is killed")
    engine, settings = {"num_gpus": num_gpus, "sp_size": num_gpus}, {"checkpoint_every": _CHECKPOINT_EVERY}
    with checkpoint(model, num_layers, folder) as (root, _):
        run, shard = plan_shard(root, root.parent / "output", 1, sampling)
        killer = _Killer()
        try:
            run_metered(run, shard, engine, settings, killer.take)
        except JobFailed as failed:
            ended, left, cause = time.time(), _ranks(), str(failed.failure.cause)
        else:
            raise ValueError("the sample was made before a rank could be killed; give more --steps")
        first_steps: list[tuple[float, int]] = []
        run_metered(run, shard, engine, settings, lambda event: first_steps.extend(_first_step(event)))
    again, step = min(first_steps)
    figures = {
        "job_ended_seconds": ended - killer.killed,
        "processes_left": len(left),
        "next_step_seconds": again - killer.killed,
        "resumed_after_step": step - 1,
    }
    rows = [{"gpus": num_gpus, "figure": name, "value": value} for name, value in figures.items()]
    return {"model": model, "steps": run.sampling.num_inference_steps, "cause": cause, "rows": rows}


class _Killer:
    """Kills the last rank some seconds after a job's first step; ``killed`` is when, in seconds since 1970."""

    def __init__(self) -> None:
        self.killed = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "first_step" and event["rank"] == 0:
            threading.Timer(_SECONDS_INTO_STEPS, self._kill).start()

    def _kill(self) -> None:
        if ranks := _ranks():
            self.killed = time.time()
            ranks[max(ranks)].kill()


def _first_step(event: Mapping[str, Any]) -> list[tuple[float, int]]:
    return [(time.time(), event["step"])] if event["event"] == "first_step" else []


def _ranks() -> dict[int, psutil.Process]:
    """The living ranks among this process's descendants."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if (rank := process.environ().get("RANK")) is not None and process.status() != psutil.STATUS_ZOMBIE:
                found[int(rank)] = process
        except psutil.NoSuchProcess:
            continue
    return found
