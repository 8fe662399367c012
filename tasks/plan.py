"""Planning: what there is to make, and its next piece."""

from collections.abc import Sequence
from typing import Any

from fastvideo.v1.dataset import open_waves
from fastvideo.v1.dataset.changes import find_changes
from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.failures import clear_failures
from fastvideo.v1.dataset.ledger import compact_ledger
from fastvideo.v1.dataset.phase_layouts import choose_phase_layouts
from fastvideo.v1.dataset.planning import plan_run
from fastvideo.v1.dataset.recovery import index_recovered
from fastvideo.v1.dataset.run import Run, open_run
from fastvideo.v1.dataset.scan import Scan, scan
from fastvideo.v1.dataset.shards import write_waves
from fastvideo.v1.dataset.status import summarize
from fastvideo.v1.dataset.wave_report import read_reports
from fastvideo.v1.dataset.waves import WaveShard, read_wave
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES
from tasks.retries import storage_task


@storage_task()
def plan(config: RunConfig) -> dict[str, Any]:
    """Adds the prompts' new samples to the run that ``config`` names; returns the run's name and counts."""
    planned = plan_run(config)
    changes = find_changes(planned, config)
    found = _index(planned.run, planned.scan)
    counts = {
        "changes": changes.lines() if changes else [],
        "samples": planned.num_samples,
        "new": planned.num_new,
        "repeated": planned.num_repeated,
    }
    return {**counts, "rejected": planned.num_rejected, **summarize(planned.run, found).to_dict()}


@storage_task()
def take_up_failed(output: str, run: str | None) -> dict[str, Any]:
    """Gives the failed samples of a run their tries back; returns how many they were, and the run's counts."""
    opened = open_run(output, run)
    retried = clear_failures(opened)
    return {"retried": retried, **summarize(opened, _index(opened, scan(opened))).to_dict()}


@storage_task()
def find_open_waves(output: str, run: str) -> list[str]:
    """The waves that lie in storage, be they those of a former life."""
    return open_waves.open_waves(open_run(output, run))


@storage_task()
def drop_waves(output: str, run: str, waves: Sequence[str] | None = None) -> None:
    """Removes the folders of waves that nobody is to run: of all, where the run lacks nothing."""
    opened = open_run(output, run)
    for wave in open_waves.open_waves(opened) if waves is None else waves:
        open_waves.close_wave(opened, wave)


@storage_task(task_run_name="cut-waves-{first}")
def cut_waves(config: RunConfig, run: str, first: int, count: int, others: Sequence[str] = ()) -> dict[str, Any]:
    """The run's counts by a scan of its stores, and the next ``waves``: ``count``, or what can be made.

    Their shards are written, of what no wave of ``others`` holds.
    """
    opened = open_run(config.output, run)
    choices = choose_phase_layouts(config, describe_pipeline(config.engine.model_path), opened.sampling)
    held = open_waves.read_held(opened, others) if others else open_waves.NOTHING_HELD
    found = _index(opened, scan(opened))
    waves = [shards[0].wave for shards in write_waves(opened, found, config, first, count, choices, held)]
    return {"waves": waves, **summarize(opened, found).to_dict()}


@storage_task()
def take_stock(output: str, run: str) -> dict[str, Any]:
    """The run's counts by a scan of its stores."""
    opened = open_run(output, run)
    return summarize(opened, _index(opened, scan(opened))).to_dict()


@storage_task(task_run_name="open-{wave}")
def open_wave(output: str, run: str, wave: str) -> list[WaveShard]:
    """The shards of a wave, and which wait for which."""
    return read_wave(open_run(output, run), wave)


@storage_task(task_run_name="close-{wave}")
def close_wave(output: str, run: str, wave: str) -> dict[str, Any]:
    """Removes the folder of a wave; returns what its runners have told.

    Where that is nothing new, then also the run's counts by a scan, for whoever has to judge whether to go on: scans
    after every wave would take time that grows with the square of the run.
    """
    opened = open_run(output, run)
    reports = read_reports(opened, wave)
    open_waves.close_wave(opened, wave)
    told = {"reports": [report.to_dict() for report in reports]}
    if any(phase.committed or phase.bad for report in reports for phase in report.phases.values()):
        return told
    return {**told, **summarize(opened, _index(opened, scan(opened))).to_dict()}


def _index(run: Run, found: Scan) -> Scan:
    """The scan, once objects that a killed process left out of the ledger are in it, or put aside as damaged."""
    if any(len(phase.unindexed_ids) for phase in found.values()) and index_recovered(run, found).damaged:
        found = scan(run)
    for phase in ALL_PHASES:
        compact_ledger(run, phase)
    return found
