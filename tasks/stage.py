"""One phase over one shard: the task that launches a job and watches it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prefect import get_run_logger
from prefect.runtime import task_run

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.runs.phase_layouts import with_layout
from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.pipelines.phase import ALL_PHASES
from fastvideo.v1.worker.failures import Cause, JobFailed
from fastvideo.v1.worker.shard_history import ShardHistory
from fastvideo.v1.worker.torchrun import launch
from tasks.events import Event, report
from tasks.gpus import hold_gpus
from tasks.retries import delay_before_retry, stage_task

STAGE_JOB = "fastvideo.v1.worker.stage_job"
_MOST_PREEMPTIONS = 20
_JOB_SETTINGS = ("text_batch_size", "tries", "checkpoint_every", "rank_timeout")

_stop = threading.Event()
_histories: dict[str, ShardHistory] = {}
"""By a shard's path: what one of Prefect's tries leaves for the next."""


@contextmanager
def stoppable_jobs() -> Iterator[None]:
    """Whatever ends the block early (Ctrl-C, SIGTERM, a cancelled flow) also ends the jobs begun in it."""
    _stop.clear()
    _histories.clear()
    try:
        yield
    except BaseException:
        _stop.set()
        raise


def stop_jobs() -> None:
    """Has the jobs begun in :func:`stoppable_jobs` save their step and leave; their shards are not tried again."""
    _stop.set()


def _run_shard(config: RunConfig, run: str, shard: WaveShard) -> dict[str, Any]:
    """Launches the job until it ends well; returns its counts. Raises ``JobFailed`` when another try is Prefect's."""
    history = _histories.setdefault(shard.path, ShardHistory())
    preemptions = 0
    while True:
        history.begin_job()
        try:
            return _launch(config, run, shard, history)
        except JobFailed as error:
            preemptions += error.failure.cause is Cause.PREEMPTED
            if _goes_on(error.failure.cause, preemptions, history) and not _stop.is_set():
                get_run_logger().warning("%s; starting again at once, uncounted", error)
                continue
            _wait_before_retry(error, shard)
            raise


def _goes_on(cause: Cause, preemptions: int, history: ShardHistory) -> bool:
    """Whether the shard is nearer to its end than before the job that was lost, or lost it by nobody's fault."""
    if cause is Cause.PREEMPTED:
        return preemptions < _MOST_PREEMPTIONS
    tells_more = history.end_job()
    return history.has_made if cause is Cause.OUT_OF_TIME else tells_more


def _wait_before_retry(error: JobFailed, shard: WaveShard) -> None:
    """Waits here rather than in Prefect, where neither Ctrl-C nor the cause of the failure has a say."""
    failure = error.failure
    get_run_logger().error("%s\n%s", error, failure.details)
    delay = delay_before_retry(failure.cause, task_run.run_count or 1)
    error.is_final = delay is None or _stop.is_set()
    if not error.is_final:
        report("retrying", shard=shard.name, cause=str(failure.cause), message=failure.message, delay=delay)
        error.is_final = _stop.wait(delay)


def _launch(config: RunConfig, run: str, shard: WaveShard, history: ShardHistory) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    report("started", shard=shard.name, task_run=task_run.id)

    def on_event(event: Event) -> None:
        history.take(event)
        if event["event"] == "done":
            counts["seconds"] = max(counts["seconds"], event["seconds"])
            counts["process_seconds"] += event["seconds"]
        elif event["event"] in ("committed", "skipped", "failed", "damaged"):
            counts[event["event"]] += 1
        report(**{**event, "shard": shard.name, "phase": str(shard.phase)})

    with hold_gpus(config, shard.layout.size, _stop) as devices:
        launch(
            STAGE_JOB,
            _arguments(config, run, shard, history),
            nproc=shard.layout.size,
            log=get_run_logger().info,
            on_event=on_event,
            timeout=config.job_timeout,
            env=devices.environment,
            stop=_stop,
            held_files=devices.files,
        )
    return {"shard": shard.name, "count": shard.count, **counts}


def _arguments(config: RunConfig, run: str, shard: WaveShard, history: ShardHistory) -> list[str]:
    settings = {name: getattr(config, name) for name in _JOB_SETTINGS} | {"suspects": history.suspects}
    arguments = ["--output", config.output, "--run", run, "--phase", str(shard.phase), "--shard", shard.path]
    engine = with_layout(config.engine, shard.layout)
    return [*arguments, "--engine", json.dumps(asdict(engine)), "--settings", json.dumps(settings)]


STAGE_TASKS = {
    phase: stage_task(name=f"{phase}_shard", task_run_name="{shard.name}")(_run_shard) for phase in ALL_PHASES
}
encode_shard, denoise_shard, decode_shard = STAGE_TASKS.values()
