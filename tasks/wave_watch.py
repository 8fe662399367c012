"""Looks after a wave while it runs: shows it in Prefect's UI, leaves its report in storage, says when to end early."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any

from prefect import get_run_logger

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.publishing.contact_sheet import render_contact_sheet
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.waves.open_waves import shard_paths
from fastvideo.v1.dataset.waves.shards import read_shard
from fastvideo.v1.dataset.waves.wave_report import WaveReport, write_report
from tasks.artifacts import LiveArtifact, contact_sheet_markdown, duration, escape, link, run_link
from tasks.board import WaveBoard

_LOOK_SECONDS = 10.0
_SHEET_SECONDS = 300.0


class WaveEnd(StrEnum):
    """Why a wave ends: its work is done, or before that."""

    DONE = "done"
    CLOSED = "closed by whoever started it"
    OVER_BUDGET = "over its error budget"


class WaveWatch:
    """``look`` is called every second or so, and ``finish`` once at the end."""

    def __init__(self, config: RunConfig, run: str, wave: str, board: WaveBoard) -> None:
        self._budget = config.error_budget
        self._run, self._wave, self._board = open_run(config.output, run), wave, board
        key = "-".join([wave, *board.report().phases])
        self._bar = LiveArtifact("progress", f"progress-{key}", f"Wave {wave}")
        self._shards = LiveArtifact("table", f"shards-{key}", f"Shards of wave {wave}")
        self._summary = LiveArtifact("markdown", f"wave-{key}", f"Wave {wave}")
        self._sheet = LiveArtifact("markdown", f"newest-{key}", "Newest videos")
        self._looked = 0.0
        self._sheet_shown, self._on_sheet = time.monotonic(), list[tuple[str, str]]()

    def look(self) -> WaveEnd:
        """Shows where the wave stands every ten seconds; whether it should end now."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return WaveEnd.DONE
        told = self._board.report()
        self._show(told)
        if self._is_over_budget(told):
            return WaveEnd.OVER_BUDGET
        with _going_on():
            if not shard_paths(self._run, self._wave):
                return WaveEnd.CLOSED
            write_report(self._run, self._wave, told)
            if time.monotonic() - self._sheet_shown > _SHEET_SECONDS:
                self._show_sheet()
        self._looked = time.monotonic()
        return WaveEnd.DONE

    def finish(self, end: WaveEnd) -> WaveReport:
        """Shows and leaves the last report, also for whoever closes the wave.

        A wave that was done before anybody looked may be over its budget, too.
        """
        told = self._board.report()
        is_over = end is WaveEnd.OVER_BUDGET or (end is WaveEnd.DONE and self._is_over_budget(told))
        told = replace(told, is_over_budget=is_over)
        self._show(told)
        if end is not WaveEnd.CLOSED:
            with _going_on():
                write_report(self._run, self._wave, told)
                self._show_sheet()
        return told

    def _is_over_budget(self, told: WaveReport) -> bool:
        return self._budget is not None and told.bad_share > self._budget

    def _show(self, told: WaveReport) -> None:
        self._bar.show(round(told.percent, 1))
        self._shards.show([_shard_row(row) for row in self._board.table()])
        self._summary.show(wave_markdown(told, self._run.output.uri("")))
        self._looked = time.monotonic()

    def _show_sheet(self) -> None:
        """Newest videos, where there are new ones."""
        self._sheet_shown = time.monotonic()
        newest = [*self._board.newest_videos]
        if newest and newest != self._on_sheet and (sheet := self._render(newest)) is not None:
            self._sheet.show(contact_sheet_markdown(sheet))
            self._on_sheet = newest

    def _render(self, newest: list[tuple[str, str]]) -> bytes | None:
        tables = [read_shard(self._run, path) for path in {path for path, _ in newest}]
        prompts = {id: prompt for table in tables for id, prompt in zip(*_columns(table, "id", "prompt"), strict=True)}
        return render_contact_sheet(self._run, videos=[(id, prompts[id]) for _, id in newest])


@contextmanager
def _going_on() -> Iterator[None]:
    """The work of a wave does not need what is left or shown here: the store may be away, the wave closed by others."""
    try:
        yield
    except (StoreUnavailable, FileNotFoundError) as error:
        get_run_logger().warning("%s; the wave goes on", error)


def _columns(table: Any, *names: str) -> list[list[str]]:
    return [table[name].to_pylist() for name in names]


def _shard_row(row: dict[str, Any]) -> dict[str, Any]:
    task_run = row.pop("task run")
    shown = {name: escape(value) for name, value in row.items()}
    return {**shown, "logs": run_link("task-run", task_run, "logs") if task_run else ""}


def wave_markdown(told: WaveReport, output: str) -> str:
    """A wave in a few lines: each phase's count, pace and price."""
    lines = ["| phase | done | failed | an hour | GPU-seconds each |", "|---|---|---|---|---|"]
    for name, phase in told.phases.items():
        pace = f"{3600 * phase.committed / told.seconds:.0f}" if phase.committed else "…"
        price = f"{phase.gpu_seconds / phase.committed:.2f}" if phase.committed else "…"
        lines.append(f"| {name} | {phase.decided} of {phase.total} | {phase.bad} | {pace} | {price} |")
    each = f"{told.gpu_seconds_each:.2f} GPU-seconds a video, " if told.gpu_seconds_each else ""
    times = f"running for {duration(told.seconds)}, {each}about {duration(told.seconds_left)} left"
    failed = [f"- {escape(shard['shard'])}: {shard['cause']}: {escape(shard['message'])}" for shard in told.failed]
    where = f"Data set: {link(output)}"
    return "\n".join([f"{told.percent:.0f}% done, {times}.", "", *lines, "", *failed, "", where])
