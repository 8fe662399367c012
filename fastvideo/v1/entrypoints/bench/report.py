"""Figures as a table for a person and as JSON for a file."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastvideo.v1.entrypoints.bench.plot import plot_rows


def report(figures: dict[str, Any], json_file: str | None, plot_file: str | None = None) -> None:
    """Prints ``figures``, every list of mappings as a table and ``rows`` as the last of them.

    All is written to ``json_file``, with the machine that it holds on; the rows are drawn into ``plot_file``.
    """
    figures = {"machine": machine(), **figures}
    console = Console()
    for name, value in figures.items():
        if not _is_table(value):
            console.print(f"{name}: {_text(value)}", highlight=False)
    for name, rows in sorted(figures.items(), key=lambda item: item[0] == "rows"):
        if _is_table(rows):
            reasons = [row.get("reason") for row in rows]  # a sentence is no cell
            cells = [{column: _text(value) for column, value in row.items() if column != "reason"} for row in rows]
            table = Table(*cells[0], title=None if name == "rows" else name)
            for row in cells:
                table.add_row(*row.values())
            console.print(table)
            for row, reason in zip(cells, reasons, strict=True):
                if reason is not None:
                    console.print(f"{', '.join([*row.values()][:4])}: {reason}", highlight=False)
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=2) + "\n")
    if plot_file:
        plot_rows(figures.get("rows") or [], _title(figures), plot_file)


def _title(figures: dict[str, Any]) -> str:
    """What was measured, and on what; or what it was modelled for."""
    known = (figures.get(name) for name in ("model", "workload", "canvas"))
    parts = [" x ".join(map(str, part)) if isinstance(part, list) else str(part) for part in known if part]
    return ", ".join([*parts, figures.get("modelled") or figures["machine"]["device"]])


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def machine() -> dict[str, str]:
    """What the figures hold on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "torch": torch.__version__, "python": platform.python_version()}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
