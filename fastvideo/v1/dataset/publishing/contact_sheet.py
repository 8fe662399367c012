"""A picture of a data set: first, middle and last frames of the newest videos, their prompts beneath."""

import heapq
import io
import tempfile
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from fastvideo.v1.dataset.layout import video_path
from fastvideo.v1.dataset.objects.video import iter_frames
from fastvideo.v1.dataset.progress.scan import list_objects
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.shown_text import printable

logger = init_logger(__name__)

NUM_VIDEOS = 12
_FRAMES = 3
_CELL_WIDTH = {2: 620, 3: 416}  # by columns: wide videos stand in two, others in three
_WIDE = 1.25
_MARGIN, _GAP, _SEAM = 24, 24, 4
_FONT_SIZE, _LINE_HEIGHT, _LINES = 15, 21, 2
_LONGEST_TEXT = 500  # characters looked at, more than two lines hold
_PAPER, _INK = (250, 250, 248), (40, 40, 44)
_DASHES = str.maketrans("‐‑‒–—―−", "-------")  # noqa: RUF001


def render_contact_sheet(
    run: Run, num_videos: int = NUM_VIDEOS, videos: Sequence[tuple[str, str]] | None = None
) -> bytes | None:
    """A PNG of the newest videos of the run, in data-set order; None if there is none.

    ``videos``, ids and prompts, are shown instead where the caller knows the newest: finding them lists them all.
    """
    cells = []
    for id, prompt in _newest(run, num_videos) if videos is None else videos:
        path = video_path(run.keys[Phase.DECODE], id)
        try:
            cells.append((_strip(run.objects.read(path)), prompt))
        except (ValueError, FileNotFoundError) as error:
            logger.warning("contact sheet: %s is left out: %s", path, error)
    return _encode(_sheet(cells)) if cells else None


def _newest(run: Run, count: int) -> list[tuple[str, str]]:
    """Ids and prompts of the run's newest videos."""
    videos = list_objects(run.objects, Phase.DECODE, run.keys[Phase.DECODE])
    ids, times = (
        videos["id"].combine_chunks(),
        dict(zip(*(videos[name].to_pylist() for name in ("id", "modified")), strict=True)),
    )
    found: list[tuple[float, int, str, str]] = []
    position = 0
    for batch in run.iter_batches(["id", "prompt"]):
        rows = batch.filter(pc.is_in(batch["id"], ids))
        for id, prompt in zip(rows["id"].to_pylist(), rows["prompt"].to_pylist(), strict=True):
            position += 1
            found.append((times[id], -position, id, prompt))
        found = heapq.nlargest(count, found)
    return [(id, prompt) for _, _, id, prompt in sorted(found, key=lambda video: -video[1])]


def _strip(video: bytes) -> Image.Image:
    """First, middle and last frame side by side, as wide as a cell."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(video)
        file.flush()
        frames = list(iter_frames(file.name))
    if not frames:
        raise ValueError("the video has no frames")
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
    height, width = chosen[0].shape[:2]
    frame_width = (_CELL_WIDTH[_columns(width, height)] + _SEAM) // _FRAMES - _SEAM
    size = (frame_width, max(1, round(height * frame_width / width)))
    strip = Image.new("RGB", (_FRAMES * (frame_width + _SEAM) - _SEAM, size[1]), _PAPER)
    for number, frame in enumerate(chosen):
        resized = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
        strip.paste(resized, (number * (frame_width + _SEAM), 0))
    return strip


def _sheet(cells: list[tuple[Image.Image, str]]) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    strip = cells[0][0]
    columns = min(_columns(strip.width // _FRAMES, strip.height), len(cells))
    cell_width = max(strip.width for strip, _ in cells)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    texts = [[_wrap(prompt, font, cell_width) for _, prompt in row] for row in rows]
    heights = [
        max(strip.height + 8 + len(lines) * _LINE_HEIGHT for (strip, _), lines in zip(row, text, strict=True))
        for row, text in zip(rows, texts, strict=True)
    ]
    width = 2 * _MARGIN + columns * (cell_width + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights) + _GAP * (len(rows) - 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, text, height in zip(rows, texts, heights, strict=True):
        for column, ((strip, _), lines) in enumerate(zip(row, text, strict=True)):
            left = _MARGIN + column * (cell_width + _GAP)
            sheet.paste(strip, (left, top))
            for number, line in enumerate(lines):
                draw.text((left, top + strip.height + 6 + number * _LINE_HEIGHT), line, _INK, font)
        top += height + _GAP
    return sheet


def _columns(width: int, height: int) -> int:
    return 2 if width / height > _WIDE else 3


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit, the last cut with an ellipsis where there is more."""
    lines = [""]
    for word in _drawable(printable(text[:_LONGEST_TEXT])).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < _LINES:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return [_cut(line, font, width) for line in lines]


def _drawable(text: str) -> str:
    """The text without accents, with plain dashes: Pillow's own font has neither, and draws a box for each."""
    letters = unicodedata.normalize("NFKD", text.translate(_DASHES))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(line) > width:
        line = line.removesuffix(" ...").rstrip()[:-1].rstrip() + " ..."
    return line


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
