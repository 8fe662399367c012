"""The rows of a bench as a picture: one bar each, drawn with Pillow."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

# What a bar's length says: the first of these that a table has, with its unit.
_MEASURES = {
    "step_ms": "ms a step",
    "ms": "ms",
    "seconds": "seconds",
    "peak_gib": "GiB at the peak",
    "all_three": "share of the videos that show what was asked",
}
_WIDTH, _ROW, _MARGIN, _BAR = 1100, 30, 24, 18
_INK, _FAINT, _COLOUR = "#222222", "#dddddd", "#3b6ea5"


def plot_rows(rows: list[dict[str, Any]], title: str, path: str) -> None:
    """Writes a PNG with a bar for each row, named by the row's words.

    Raises ``ValueError`` for rows that measure nothing comparable.
    """
    measure = next((name for name in _MEASURES if rows and isinstance(rows[0].get(name), int | float)), None)
    if measure is None:
        raise ValueError(f"{path}: a plot needs rows with one of {', '.join(_MEASURES)}; this bench has none")
    labels = [_label(row) for row in rows]
    values = [float(row[measure]) for row in rows]
    font, heading = ImageFont.load_default(14), ImageFont.load_default(17)
    left = _MARGIN + max(int(font.getlength(label)) for label in labels) + 14
    right = _WIDTH - _MARGIN - max(int(font.getlength(_figure(value))) for value in values) - 8
    top = 2 * _MARGIN + 34
    image = Image.new("RGB", (_WIDTH, top + _ROW * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=heading)
    draw.text((_MARGIN, _MARGIN + 26), _MEASURES[measure], fill=_INK, font=font)
    draw.line([(left, top - 4), (left, top + _ROW * len(rows))], fill=_FAINT, width=2)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = top + _ROW * index + _ROW // 2
        end = left + max(1, round((right - left) * value / (max(values) or 1.0)))
        draw.rectangle([left, middle - _BAR // 2, end, middle + _BAR // 2], fill=_COLOUR)
        draw.text((left - 12, middle), label, fill=_INK, font=font, anchor="rm")
        draw.text((end + 8, middle), _figure(value), fill=_INK, font=font, anchor="lm")
    image.save(Path(path), "PNG")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _label(row: dict[str, Any]) -> str:
    """The row's words and whole numbers, but for a sentence."""
    words = [
        f"{value} {name}" if isinstance(value, int) else value
        for name, value in row.items()
        if isinstance(value, int | str) and not isinstance(value, bool) and name != "reason"
    ]
    return ", ".join(words)
