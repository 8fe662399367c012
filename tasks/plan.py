"""Planning: what there is to make, and its next piece."""

import os
from collections.abc import Sequence
from typing import Any

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.plan.changes import find_changes
from fastvideo.v1.dataset.plan.figures import benchmark_seconds
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.failures import clear_failures
from fastvideo.v1.dataset.progress.ledger import compact_ledger
from fastvideo.v1.dataset.progress.recovery import index_recovered
from fastvideo.v1.dataset.progress.scan import Scan, scan
from fastvideo.v1.dataset.progress.status import summarize
from fastvideo.v1.dataset.runs.fingerprint import find_model
from fastvideo.v1.dataset.runs.phase_layouts import choose_phase_layouts
from fastvideo.v1.dataset.runs.run import Run, open_run
from fastvideo.v1.dataset.waves import open_waves
from fastvideo.v1.dataset.waves.shards import write_waves
from fastvideo.v1.dataset.waves.wave import WaveShard, read_wave
from fastvideo.v1.dataset.waves.wave_report import read_reports
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES
from tasks.retries import storage_task


@storage_task()
def plan(config: RunConfig) -> dict[str, Any]:
    """Adds the prompts' new samples to the run that ``config`` names; returns its name, counts and model's path."""
    planned = plan_run(config)
    changes = find_changes(planned, config)
    found = _index(planned.run, planned.scan)
    counts = {
        "model_path": _from_anywhere(config.engine.model_path),
        "changes": changes.lines() if changes else [],
        "samples": planned.num_samples,
        "new": planned.num_new,
        "repeated": planned.num_repeated,
    }
    return {**counts, "rejected": planned.num_rejected, **summarize(planned.run, found).to_dict()}


@storage_task()
def take_up_failed(config: RunConfig, run: str | None) -> dict[str, Any]:
    """Gives the failed samples of a run their tries back; returns how many, the run's counts, and its model's path."""
    opened = open_run(config.output, run)
    model_path = _from_anywhere(find_model(opened, config.engine.model_path))
    counts = {"model_path": model_path, "retried": clear_failures(opened)}
    return {**counts, **summarize(opened, _index(opened, scan(opened))).to_dict()}


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
    description = describe_pipeline(config.engine.model_path)
    choices = choose_phase_layouts(config, description, opened.sampling)
    expected = benchmark_seconds(description, opened.sampling, choices, config.engine.vae_precision)
    held = open_waves.read_held(opened, others) if others else open_waves.NOTHING_HELD
    found = _index(opened, scan(opened), held)
    waves = write_waves(opened, found, config, first, count, choices, held, expected)
    return {"waves": [shards[0].wave for shards in waves], **summarize(opened, found).to_dict()}


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
    held = open_waves.read_held(opened, open_waves.open_waves(opened))
    return {**told, **summarize(opened, _index(opened, scan(opened), held)).to_dict()}


def _from_anywhere(model_path: str) -> str:
    """A directory's whole path, since jobs may run in another; a URI or a hub id says the same everywhere."""
    return os.path.abspath(model_path) if os.path.isdir(model_path) else model_path


def _index(run: Run, found: Scan, held: open_waves.Held = open_waves.NOTHING_HELD) -> Scan:
    """The scan, once objects that the ledger lacks are in it, or put aside as damaged; not those of waves at work."""
    if index_recovered(run, found, held.by_phase()).damaged:
        found = scan(run)
    for phase in ALL_PHASES:
        compact_ledger(run, phase)
    return found
