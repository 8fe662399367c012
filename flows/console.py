"""What the command line prints: bars on a terminal, plain lines elsewhere, a summary at the end."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastvideo.v1.shown_text import shown
from tasks.events import Event, Listener

LINE_EVERY_SECONDS = 10.0


@contextmanager
def show_progress() -> Iterator[Listener]:
    """A listener that shows the events of a run on standard error."""
    view = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        yield view.take
    finally:
        view.close()


class _Counts:
    """What the events of a run add up to, by phase; subclasses show it."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        """Takes one event, from any thread."""
        with self._lock:
            match event["event"]:
                case "planned":
                    self.total = {phase: counts["total"] for phase, counts in event["phases"].items()}
                    self.done = {phase: counts["done"] for phase, counts in event["phases"].items()}
                    for line in event.get("changes", ()):
                        self.say(line)
                    rejected = f", {event['rejected']} rows kept out" if event.get("rejected") else ""
                    self.say(
                        f"run {event['run']}: {self.total['decode']} videos, {self.done['decode']} there{rejected}"
                    )
                case "committed":
                    self.done[event["phase"]] += 1
                case "failed":
                    self.say(f"failed: {event['phase']} {event['id']}: {event['error']}")
                case "damaged":
                    self.say(f"damaged, to be made again: {event['phase']} {event['id']}")
                case "retrying":
                    self.say(f"{event['shard']}: {event['cause']}: {event['message']}; again in {event['delay']:g} s")
                case "shard" if event["state"] == "failed":
                    self.say(f"{event['shard']} failed: {event['cause']}: {event['message']}")
            self.show()

    def say(self, line: str) -> None:
        """Prints a line."""
        print(shown(line), file=sys.stderr, flush=True)

    def show(self) -> None:
        """Shows the counts."""

    def close(self) -> None:
        """Ends the show."""


class _Bars(_Counts):
    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(TextColumn("{task.description:8}"), *columns, console=Console(stderr=True))
        self._bars: dict[str, Any] = {}
        self._progress.start()

    def say(self, line: str) -> None:
        self._progress.console.print(shown(line), markup=False, highlight=False)

    def show(self) -> None:
        for phase, total in self.total.items():
            if phase not in self._bars:
                self._bars[phase] = self._progress.add_task(phase, total=total)
            self._progress.update(self._bars[phase], completed=self.done[phase])

    def close(self) -> None:
        self._progress.stop()


class _Lines(_Counts):
    def __init__(self) -> None:
        super().__init__()
        self._shown = time.monotonic()

    def show(self) -> None:
        if time.monotonic() - self._shown >= LINE_EVERY_SECONDS:
            self._shown = time.monotonic()
            self.say(", ".join(f"{phase} {self.done[phase]}/{total}" for phase, total in self.total.items()))


def show_summary(summary: Mapping[str, Any]) -> None:
    """The end of a run."""
    show_status(summary)
    for shard in summary["failed_shards"]:
        print(shown(f"{shard['shard']} failed: {shard['cause']}: {shard['message']}"))
    if published := summary.get("published"):
        show_published(published)
    if summary["over_budget"]:
        print("a wave was over its error_budget, and no other was begun")
    if summary["exit_code"] == 3:
        print("samples are missing; the same command goes on from here")
    if summary["exit_code"] == 2:
        print("some samples failed; `fastvideo dataset retry` takes them up again")


def show_status(status: Mapping[str, Any]) -> None:
    """The counts of each phase."""
    print(f"run {status['run']}")
    for phase, counts in status["phases"].items():
        parts = [f"{counts[name]} {name}" for name in ("failed", "blocked", "missing") if counts[name]]
        line = ", ".join([f"{counts['done']} of {counts['total']} done", *parts, format_size(counts["bytes"])])
        print(f"  {phase:8}{line}")


def show_published(published: Mapping[str, Any]) -> None:
    """Where the data set is."""
    print(f"{published['num_rows']} videos in {published['output']}: the files under decode/, their table in data/")
    if published["contact_sheet"]:
        print(f"contact sheet: {published['contact_sheet']}")


def format_size(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
