"""The state of a wave's shards while they run, for the progress bar and the table of shards."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvideo.v1.dataset.publishing.contact_sheet import NUM_VIDEOS
from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.dataset.waves.wave_report import PhaseReport, WaveReport
from fastvideo.v1.pipelines.phase import Phase
from tasks.events import Event

_ORDER = ("failed", "retrying", "running", "done", "waiting")


@dataclass
class ShardRow:
    """``made`` counts samples that are there (committed or found), ``bad`` those out of tries.

    ``committed`` and ``gpu_seconds`` (of computing) are of all attempts; ``task_run`` is Prefect's id of the last.
    """

    shard: WaveShard
    state: str = "waiting"
    made: int = 0
    bad: int = 0
    committed: int = 0
    gpu_seconds: float = 0.0
    attempts: int = 0
    task_run: str = ""
    cause: str = ""
    message: str = ""
    started: float = field(default=0.0)
    seconds: float = 0.0


class WaveBoard:
    """Takes events from the threads of all tasks."""

    def __init__(self, shards: Sequence[WaveShard]) -> None:
        self._rows = {shard.name: ShardRow(shard) for shard in shards}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.newest_videos: deque[tuple[str, str]] = deque(maxlen=NUM_VIDEOS)
        """Paths of shards, and ids in them."""

    def take(self, event: Event) -> None:
        """Counts one event of a job; events of no shard of ours are passed over."""
        row = self._rows.get(event.get("shard", ""))
        if row is None:
            return
        with self._lock:
            self._count(row, event)

    def _count(self, row: ShardRow, event: Event) -> None:
        match event["event"]:
            case "started":
                row.state, row.made, row.bad, row.started = "running", 0, 0, row.started or time.monotonic()
                row.attempts += 1
                row.task_run = event.get("task_run") or ""
            case "committed":
                row.made += 1
                row.committed += 1
                row.gpu_seconds += event.get("seconds", 0.0) * row.shard.layout.model_size
                if row.shard.phase is Phase.DECODE:
                    self.newest_videos.append((row.shard.path, event["id"]))
            case "skipped" if not event.get("reason", "").startswith("its input"):
                row.made += 1
            case "failed":
                row.bad += 1
            case "retrying":
                row.state, row.cause, row.message = "retrying", event["cause"], event["message"]

    def finish(self, name: str, cause: str = "", message: str = "") -> None:
        """Notes that a shard's task is over: well, or for ``cause``."""
        with self._lock:
            row = self._rows[name]
            row.state, row.cause, row.message = ("failed" if cause else "done"), cause, message
            row.seconds = time.monotonic() - row.started if row.started else 0.0

    def report(self) -> WaveReport:
        """Where the wave stands."""
        with self._lock:
            rows = [(row, _decided(row)) for row in self._rows.values()]
        phases: dict[str, PhaseReport] = {}
        for row, decided in rows:
            before = phases.get(row.shard.phase, PhaseReport())
            phases[str(row.shard.phase)] = PhaseReport(
                total=before.total + row.shard.count,
                decided=before.decided + decided,
                bad=before.bad + row.bad,
                committed=before.committed + row.committed,
                gpu_seconds=round(before.gpu_seconds + row.gpu_seconds, 3),
            )
        seconds = time.monotonic() - self._began
        return WaveReport(phases=phases, seconds=seconds, failed=self.failed())

    def failed(self) -> list[dict[str, str]]:
        """The shards whose task failed, with why."""
        rows = [row for row in self._rows.values() if row.state == "failed"]
        return [{"shard": row.shard.name, "cause": row.cause, "message": row.message} for row in rows]

    def table(self) -> list[dict[str, Any]]:
        """A row a shard, failed ones first."""
        rows = sorted(self._rows.values(), key=lambda row: _ORDER.index(row.state))
        return [
            {
                "shard": row.shard.name,
                "state": row.state,
                "made": f"{row.made}/{row.shard.count}",
                "failed samples": row.bad,
                "attempts": row.attempts,
                "seconds": round(row.seconds, 1),
                "cause": row.cause,
                "message": row.message,
                "task run": row.task_run,
            }
            for row in rows
        ]


def _decided(row: ShardRow) -> int:
    return row.shard.count if row.state == "done" else min(row.made + row.bad, row.shard.count)
