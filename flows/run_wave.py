"""One wave: some shards through encode, denoise and decode."""

from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

from prefect import State, flow
from prefect.futures import PrefectConcurrentFuture

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.waves import WaveShard
from fastvideo.v1.worker.failures import Cause, JobFailed
from flows.schedule import Schedule
from tasks.artifacts import begin_progress, show_shards, update_progress
from tasks.board import WaveBoard
from tasks.events import listening, report
from tasks.plan import close_wave, open_wave
from tasks.stage import STAGE_TASKS, stoppable_jobs

_SHOW_EVERY_SECONDS = 2.0


@flow(flow_run_name="wave-{wave}")
def run_wave(config: RunConfig, run: str, wave: str) -> dict[str, Any]:
    """Runs every shard of a wave, at most ``config.jobs`` at once; a shard that fails does not stop the others."""
    shards = open_wave(config.output, run, wave)
    board = WaveBoard(shards)
    report("wave", wave=wave, shards=len(shards))
    with listening(board.take), stoppable_jobs():
        _run_shards(config, run, shards, board, begin_progress(wave))
    show_shards(wave, board)
    status = close_wave(config.output, run, wave)
    return {"wave": wave, "shards": len(shards), "committed": board.committed, "failed": board.failed(), **status}


def _run_shards(config: RunConfig, run: str, shards: list[WaveShard], board: WaveBoard, progress: Any) -> None:
    schedule = Schedule(shards)
    running: dict[Any, WaveShard] = {}
    while True:
        while len(running) < config.jobs and (shard := schedule.next()):
            future = STAGE_TASKS[shard.phase].submit(config, run, shard)
            assert isinstance(future, PrefectConcurrentFuture)
            running[future.wrapped_future] = shard
        if not running:
            return
        done, _ = wait(running, timeout=_SHOW_EVERY_SECONDS, return_when=FIRST_COMPLETED)
        for ended in done:
            shard = running.pop(ended)
            schedule.finish(shard.name)
            _note_end(board, shard, ended.result())
        update_progress(progress, board)


def _note_end(board: WaveBoard, shard: WaveShard, state: State[Any]) -> None:
    if state.is_completed():
        board.finish(shard.name)
        report("shard", shard=shard.name, state="done")
        return
    error = state.result(raise_on_failure=False)
    if isinstance(error, JobFailed):
        cause, message = error.failure.cause, error.failure.message
    else:
        cause, message = Cause.INFRASTRUCTURE, f"{type(error).__name__}: {error}"
    board.finish(shard.name, cause, message)
    report("shard", shard=shard.name, state="failed", cause=str(cause), message=message)
