"""The whole run in Prefect's UI, wherever its waves are worked on: from storage and what their runners tell."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from prefect.events import emit_event
from prefect.runtime import flow_run

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.progress.failures import read_failures
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.waves.wave_report import WaveReport, read_reports
from fastvideo.v1.pipelines.phase import ALL_PHASES
from tasks.artifacts import LiveArtifact, duration, escape, link, run_link
from tasks.events import Event

OVER_BUDGET_EVENT = "fastvideo.run.over-error-budget"
_SHOW_SECONDS = 15.0
_PAST_WAVES = 20  # rows of the table
_SHOWN_FAILURES = 3  # of each phase


class RunView:
    """``working`` are the waves at work, each with its flow run if it has one of its own; the caller keeps it."""

    def __init__(self, config: RunConfig, start: Mapping[str, Any], working: Mapping[str, UUID | None]) -> None:
        self._run = open_run(config.output, start["run"])
        self._working = working
        self._status = self._before = start["phases"]
        self._told: Counter[str] = Counter()  # rows of each phase decided by waves that ended since the last scan
        self._counted: dict[str, Counter[str]] = {}  # what those at work had told by then, and the scan found
        self._past: list[str] = []
        self._began = self._shown = time.monotonic()
        self._bar = LiveArtifact("progress", f"progress-{self._run.name}", f"Run {self._run.name}")
        self._page = LiveArtifact("markdown", f"run-{self._run.name}", f"Run {self._run.name}")

    def take(self, event: Event) -> None:
        """Shows the run anew every fifteen seconds, at the events that say that time goes by."""
        if event["event"] == "tick" and time.monotonic() - self._shown > _SHOW_SECONDS:
            self.show()

    def count(self, status: Mapping[str, Any]) -> None:
        """Notes the run's counts by a scan."""
        self._status, self._told = status["phases"], Counter()
        if (at_work := self._read_reports()) is not None:
            self._counted = {wave: _decided(told) for wave, told in at_work.items()}

    def close_wave(self, wave: str, lost: str | None, flow_run_id: UUID | None, closed: Mapping[str, Any]) -> None:
        """Notes a wave's end."""
        told = [WaveReport.from_dict(report) for report in closed["reports"]]
        self._told += self._since_scan(wave, told)
        if "phases" in closed:
            self.count(closed)
        self._past.append(_row(wave, lost or "ended", told, flow_run_id))
        self.show()

    def show(self) -> None:
        """Shows the run: its counts by the last scan, and what waves have told since then."""
        self._shown = time.monotonic()
        at_work = self._read_reports()
        if at_work is None:
            return
        told = sum((self._since_scan(wave, reports) for wave, reports in at_work.items()), self._told)
        counts = {
            phase: min(part["done"] + part["failed"] + part["blocked"] + told[phase], part["total"])
            for phase, part in self._status.items()
        }
        total = sum(counts["total"] for counts in self._status.values())
        self._bar.show(round(100.0 * sum(counts.values()) / total, 1) if total else 100.0)
        rows = [_row(wave, "at work", told, self._working[wave]) for wave, told in at_work.items()]
        self._page.show(self._markdown(counts, rows))

    def _read_reports(self) -> dict[str, list[WaveReport]] | None:
        """What the waves at work have told; None while the store cannot be reached: whoever needs it will say so."""
        try:
            return {wave: read_reports(self._run, wave) for wave in self._working}
        except StoreUnavailable:
            return None

    def _since_scan(self, wave: str, told: Iterable[WaveReport]) -> Counter[str]:
        return _decided(told) - self._counted.get(wave, Counter())

    def _markdown(self, counts: Mapping[str, int], rows: list[str]) -> str:
        videos, before = self._status["decode"], self._before["decode"]
        seconds = time.monotonic() - self._began
        made = counts["decode"] - before["done"] - before["failed"] - before["blocked"]
        pace = f"{3600 * made / seconds:.0f} videos an hour" if made > 0 else "no video yet"
        left = seconds * (videos["total"] - counts["decode"]) / made if made > 0 else None
        head = f"{counts['decode']} of {videos['total']} videos decided; {pace}, about {duration(left)} left."
        phases = [
            f"| {name} | {counts[name]} of {part['total']} | {part['failed']} | {part['blocked']} |"
            for name, part in self._status.items()
        ]
        past = self._past[: -_PAST_WAVES - 1 : -1]
        return "\n".join(
            [
                head,
                "",
                f"Data set: {link(self._run.output.uri(''))}",
                "",
                "| phase | decided | failed | blocked |",
                "|---|---|---|---|",
                *phases,
                "",
                "| wave | state | done | made | failed samples | GPU-seconds a video | left | failed shards |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
                *past,
            ]
        )


def _decided(reports: Iterable[WaveReport]) -> Counter[str]:
    """Rows of each phase that the runners of a wave have made or given up."""
    decided: Counter[str] = Counter()
    for report in reports:
        decided.update({name: phase.committed + phase.bad for name, phase in report.phases.items()})
    return decided


def _row(wave: str, state: str, told: list[WaveReport], id: UUID | None) -> str:
    """A line of the table of waves."""
    percent = sum(report.percent for report in told) / len(told) if told else 0.0
    bad = sum(phase.bad for report in told for phase in report.phases.values())
    each = [report.gpu_seconds_each for report in told]
    price = f"{sum(known):.2f}" if (known := [one for one in each if one is not None]) else "…"
    left = duration(told[-1].seconds_left) if told and state == "at work" else ""
    failed = [shard for report in told for shard in report.failed]
    first = f"{len(failed)}, first {escape(failed[0]['shard'])}: {failed[0]['cause']}" if failed else "0"
    made = sum(report.committed for report in told)
    cells = [run_link("flow-run", id, wave), escape(state), f"{percent:.0f}%", made, bad, price, left, first]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def tell_over_budget(config: RunConfig, run: str, waits: bool) -> None:
    """An event for Prefect's automations (infra/automations.yaml): a wave of this flow run was over its error budget.

    ``waits`` says whether the flow run now waits for a person, or ends.
    """
    opened = open_run(config.output, run)
    failed = [
        f"{phase} {record['id']}: {record['error']}"
        for phase in ALL_PHASES
        for record in read_failures(opened, phase, _SHOWN_FAILURES)
    ]
    emit_event(
        event=OVER_BUDGET_EVENT,
        resource={"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name},
        payload={"run": run, "waits": waits, "failed_samples": failed},
    )
