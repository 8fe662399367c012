"""Figures as a table for a person and as JSON for a file."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def report(figures: dict[str, Any], json_file: str | None) -> None:
    """Prints ``figures``, their ``rows`` as a table, and writes all to ``json_file`` with the machine they hold on."""
    figures = {"machine": machine(), **figures}
    console = Console()
    for name, value in figures.items():
        if name != "rows":
            console.print(f"{name}: {_text(value)}", highlight=False)
    if rows := figures.get("rows"):
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(_text(value) for value in row.values()))
        console.print(table)
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=2) + "\n")


def machine() -> dict[str, str]:
    """What the figures hold on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "torch": torch.__version__, "python": platform.python_version()}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
