"""One wave: some shards through encode, denoise and decode."""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Annotated, Any

from prefect import State, flow, get_run_logger
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.worker.failures import Cause, JobFailed
from flows.parameters import DataSet, parameter
from flows.schedule import Schedule
from tasks.board import WaveBoard
from tasks.events import listening, report
from tasks.plan import open_wave
from tasks.stage import STAGE_TASKS, stop_jobs, stoppable_jobs
from tasks.wave_watch import WaveEnd, WaveWatch

_SHOW_EVERY_SECONDS = 2.0


class OverBudget(Exception):
    """So many of a wave's samples failed that what they have in common should be looked at first."""


def _name() -> str:
    """Says which part of which wave it is."""
    given = flow_run.parameters
    return f"wave {given['wave']} {'+'.join(given.get('phases', ALL_PHASES))}"


@flow(flow_run_name=_name)
def run_wave(
    config: DataSet,
    run: Annotated[str, parameter("Run", "Name of the run that the wave is of")],
    wave: Annotated[str, parameter("Wave", "Name of the wave")],
    phases: Annotated[Sequence[Phase], parameter("Phases", "Those whose shards this flow run does")] = ALL_PHASES,
) -> dict[str, Any]:
    """Runs the shards of a wave, at most ``config.jobs`` at once; a shard that fails does not stop the others.

    Returns what it made. It also ends where the wave was closed meanwhile: then its work is another's. Raises
    ``OverBudget``.
    """
    shards = [shard for shard in open_wave(config.output, run, wave) if shard.phase in phases]
    if not shards:
        return {"wave": wave, "shards": 0, "end": WaveEnd.CLOSED}
    board = WaveBoard(shards)
    watch = WaveWatch(config, run, wave, board)
    report("wave", wave=wave, shards=len(shards))
    with listening(board.take), stoppable_jobs():
        end = _run_shards(config, run, shards, board, watch)
    told = watch.finish(end)
    if told.is_over_budget:
        raise OverBudget(
            f"{told.bad_share:.0%} of the samples of wave {wave} failed, more than error_budget={config.error_budget:g}"
        )
    return {"wave": wave, "shards": len(shards), "end": end, **told.to_dict()}


def _run_shards(config: RunConfig, run: str, shards: list[WaveShard], board: WaveBoard, watch: WaveWatch) -> WaveEnd:
    """Runs what is ready until nothing is left, or the watch says that it is enough."""
    schedule = Schedule(shards)
    running: dict[Any, WaveShard] = {}
    end = WaveEnd.DONE
    while True:
        while end is WaveEnd.DONE and len(running) < config.jobs and (shard := schedule.next()):
            future = STAGE_TASKS[shard.phase].submit(config, run, shard)
            assert isinstance(future, PrefectConcurrentFuture)
            running[future.wrapped_future] = shard
        if not running:
            return end
        done, _ = wait(running, timeout=_SHOW_EVERY_SECONDS, return_when=FIRST_COMPLETED)
        for ended in done:
            shard = running.pop(ended)
            schedule.finish(shard.name)
            _note_end(board, shard, ended.result())
        report("tick")
        if end is WaveEnd.DONE and (end := watch.look()) is not WaveEnd.DONE:
            get_run_logger().warning("the wave ends early: %s", end)
            stop_jobs()


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
