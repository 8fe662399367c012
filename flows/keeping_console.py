"""What the commands that look after a data set print."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.console import LINE_EVERY_SECONDS, format_size, show_status

_SHOWN = 20


@contextmanager
def counting(done: str) -> Iterator[Callable[[int, int], None]]:
    """Shows objects and bytes on standard error as they are counted: "verified 12 objects, 3.4 MB"."""
    is_terminal = sys.stderr.isatty()
    every = 0.2 if is_terminal else LINE_EVERY_SECONDS
    shown = time.monotonic()

    def show(objects: int, size: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= every:
            shown = time.monotonic()
            line = f"{done} {objects} objects, {format_size(size)}"
            print(
                f"\r{line}\033[K" if is_terminal else line, end="" if is_terminal else "\n", file=sys.stderr, flush=True
            )

    try:
        yield show
    finally:
        if is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def show_verification(result: Mapping[str, Any]) -> None:
    """What was found, damage first, and what a run has still to make."""
    print(f"{result['num_objects']} objects read, {format_size(result['num_bytes'])}")
    for kind, count in result["counts"].items():
        print(f"{count} {kind}")
        _show_findings([finding for finding in result["findings"] if finding["kind"] == kind], count)
    for status in result["runs"]:
        show_status(status)
    if not result["runs"]:
        print("no run is left: held against the published table alone")
    if damaged := result["counts"].get("damaged", 0) - result["num_put_aside"]:
        print(f"{damaged} objects are damaged; `--repair` puts them aside, and a run then makes them again")
    elif result["exit_code"] == 0:
        print("all whole")


def show_collected(result: Mapping[str, Any]) -> None:
    """A table of what was, or would be, deleted."""
    from rich.table import Table

    table = Table("garbage", "files", "size", "for instance", box=None, pad_edge=False)
    for kind, count in result["files"].items():
        table.add_row(kind, str(count), format_size(result["bytes"][kind]), escape(result["examples"][kind][0]))
    files, size = sum(result["files"].values()), format_size(sum(result["bytes"].values()))
    if files:
        Console().print(table)
    print(f"{files} files, {size} {'deleted' if result['deleted'] else 'to be deleted with --yes'}")
    if not result["is_whole"]:
        print("a run was planned or an output came meanwhile: the rest stays; the same command takes it up again")


def show_copied(result: Mapping[str, Any]) -> None:
    """What was copied, or why the copy is not to be seen yet."""
    there = f", {result['num_there']} were there" if result["num_there"] else ""
    print(f"{result['num_objects']} objects copied, {format_size(result['num_bytes'])}{there}")
    if result["is_whole"]:
        print(f"{result['target']} is the same data set now")
        return
    print(f"{len(result['problems'])} objects are damaged or gone, so that no run shows in the copy yet:")
    _show_findings(result["problems"], len(result["problems"]))
    print("make them again here (`fastvideo dataset verify --repair`, then `run`), then copy again")


def show_reproduction(result: Mapping[str, Any]) -> None:
    """Each object beside its stored twin, and what it comes to."""
    print(f"sample {result['id']} of run {result['run']}: {result['prompt']!r}")
    for difference in result["differences"]:
        print(f"  {difference}")
    for made in result["comparisons"]:
        print(f"  {made['phase']:8}{made['path'].rpartition('/')[2]}: {_likeness(made)}")
    verdict = {0: "reproduced", 3: "cannot be compared"}.get(result["exit_code"], "not reproduced")
    print(f"{verdict}, in {result['seconds']:.1f} s of work")


def _likeness(made: Mapping[str, Any]) -> str:
    if made["why_not"]:
        return str(made["why_not"])
    if made["is_equal"]:
        return "equal to the byte"
    if made["phase"] == "decode":
        return f"PSNR {made['psnr']:.1f} dB" if made["psnr"] is not None else "other bytes, equal pixels"
    return f"relative error {made['error']:.2g}" if made["error"] is not None else "other tensors"


def _show_findings(findings: Sequence[Mapping[str, str]], count: int) -> None:
    for finding in findings[:_SHOWN]:
        print(f"  {finding['path']}: {finding['reason']}")
    if count > _SHOWN:
        print(f"  and {count - _SHOWN} more")
