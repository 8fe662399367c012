"""What ``plan`` prints: a quote, and where each of its figures is from."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fastvideo.v1.shown_text import shown
from flows.console import format_size, show_status


def show_plan(plan: Mapping[str, Any]) -> None:
    """What a run would make, and what that takes."""
    print(f"{plan['samples']} samples, {plan['new']} of them new, {plan['repeated']} asked for again")
    if plan["rejected"]:
        print(f"{plan['rejected']} rows are kept out, among them:")
        for row in plan["rejected_rows"]:
            print(shown(f"  {row}"))
    for line in plan["changes"]:
        print(line)
    for phase, layout in plan["layouts"].items():
        print(f"  {phase:8}on {layout}")
    show_status(plan)
    _show_quote(plan["quote"], plan["price"])


def _show_quote(quote: Mapping[str, Mapping[str, Any]], price: float | None) -> None:
    table = Table("", box=None, pad_edge=False)
    for name in ("missing", "GPU-hours", "money", "to write"):
        if price is not None or name != "money":
            table.add_column(name, justify="right")
    for phase, part in quote.items():
        table.add_row(phase, str(part["missing"]), *_amounts(part["gpu_hours"], part["bytes"], price))
    parts = quote.values()
    hours, size = (_sum(part[name] for part in parts if part["missing"]) for name in ("gpu_hours", "bytes"))
    table.add_row("all", "", *_amounts(hours, size, price))
    Console().print(table)
    for phase, part in quote.items():
        if part["missing"]:
            print(f"  {phase:8}time: {part['seconds_source']}; size: {part['bytes_source']}")


def _amounts(hours: float | None, size: float | None, price: float | None) -> list[str]:
    money = [] if price is None else ["?" if hours is None else f"{hours * price:,.2f}"]
    return ["?" if hours is None else f"{hours:,.3g}", *money, "?" if size is None else format_size(size)]


def _sum(values: Any) -> float | None:
    """The sum, None where a part of it is not known."""
    known = list(values)
    return None if None in known else sum(known)
