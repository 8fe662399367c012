"""The state of a wave's shards while they run, for the progress bar and the table of shards."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvideo.v1.dataset.waves import WaveShard
from tasks.events import Event

_ORDER = ("failed", "retrying", "running", "done", "waiting")


@dataclass
class ShardRow:
    """``made`` counts samples that are there (committed or found), ``bad`` those out of tries."""

    shard: WaveShard
    state: str = "waiting"
    made: int = 0
    bad: int = 0
    attempts: int = 0
    cause: str = ""
    message: str = ""
    started: float = field(default=0.0)
    seconds: float = 0.0


class WaveBoard:
    """Takes events from the threads of all tasks."""

    def __init__(self, shards: Sequence[WaveShard]) -> None:
        self._rows = {shard.name: ShardRow(shard) for shard in shards}
        self._lock = threading.Lock()
        self.committed = 0

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
            case "committed":
                row.made += 1
                self.committed += 1
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

    @property
    def percent(self) -> float:
        """How much of the wave's rows is decided, 0 to 100."""
        with self._lock:
            total = sum(row.shard.count for row in self._rows.values())
            decided = sum(row.shard.count if row.state == "done" else row.made + row.bad for row in self._rows.values())
        return 100.0 * min(decided, total) / total if total else 100.0

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
            }
            for row in rows
        ]
