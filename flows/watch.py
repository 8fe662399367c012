"""``fastvideo dataset status --watch``: how a run goes on, from storage alone."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.console import format_size

View = dict[str, Any]


def watch(output: str, run_name: str | None, seconds: float, as_json: bool) -> int:
    """Shows a run again and again until nothing is missing; returns its exit code.

    A picture on a terminal, else a line each time. The store has at least twice as long a rest as a look takes.
    """
    from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
    from fastvideo.v1.dataset.runs.run import open_run

    run = open_run(output, run_name)
    with _shower(as_json) as show:
        while True:
            started = time.monotonic()
            try:
                view = _look(run)
            except StoreUnavailable as error:  # it may come back, and the run with it
                print(error, file=sys.stderr)
            else:
                show(view)
                if not any(phase["missing"] for phase in view["phases"].values()):
                    return int(view["exit_code"])
            time.sleep(max(seconds, 2 * (time.monotonic() - started)))


def _look(run: Any) -> View:
    from fastvideo.v1.dataset.progress.rate import read_rates, seconds_left
    from fastvideo.v1.dataset.progress.scan import scan
    from fastvideo.v1.dataset.progress.status import summarize

    status, rates = summarize(run, scan(run)), read_rates(run)
    view = status.to_dict()
    view["rates"] = {str(phase): asdict(rate) if rate else None for phase, rate in rates.items()}
    return {**view, "seconds_left": seconds_left(status, rates), "time": time.time()}


@contextmanager
def _shower(as_json: bool) -> Iterator[Callable[[View], None]]:
    if as_json or not sys.stdout.isatty():
        yield lambda view: print(json.dumps(view) if as_json else line(view), flush=True)
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield lambda view: live.update(picture(view), refresh=True)


def line(view: View) -> str:
    """All in one line."""
    parts = []
    for phase, counts in view["phases"].items():
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        rate = view["rates"][phase]
        speed = f" ({rate['per_hour']:.0f}/h)" if rate and counts["missing"] else ""
        parts.append(f"{phase} {counts['done']}/{counts['total']}{failed}{speed}")
    return f"{time.strftime('%H:%M:%S', time.localtime(view['time']))} {'; '.join(parts)}; {_end(view)}"


def picture(view: View) -> Group:
    """A bar and figures for each phase."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "", "done", "failed", "waits", "missing", "size", "an hour", "s each", "last"):
        table.add_column(name, justify="right" if name else "left")
    for phase, counts in view["phases"].items():
        rate = view["rates"][phase]
        speed = ("", "", "") if rate is None else _speed(rate, view["time"])
        bar = ProgressBar(total=max(counts["total"], 1), completed=counts["done"], width=30)
        failed = Text(str(counts["failed"]), style="red" if counts["failed"] else "dim")
        done = f"{counts['done']}/{counts['total']}"
        numbers = (str(counts["blocked"]), str(counts["missing"]), format_size(counts["bytes"]))
        table.add_row(phase, bar, done, failed, *numbers, *speed)
    return Group(Text(f"run {view['run']}"), table, Text(_end(view)))


def _speed(rate: dict[str, float], now: float) -> tuple[str, str, str]:
    return f"{rate['per_hour']:,.0f}", f"{rate['seconds']:.3g}", f"{_duration(max(0.0, now - rate['last']))} ago"


def _end(view: View) -> str:
    left = view["seconds_left"]
    if not any(counts["missing"] for counts in view["phases"].values()):
        return "nothing is missing"
    if left is None:
        return "no rate to tell the end by yet"
    return f"about {_duration(left)} left at this rate"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
