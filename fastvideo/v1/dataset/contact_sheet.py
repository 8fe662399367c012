"""A picture of a data set: first, middle and last frames of the newest videos, their prompts beneath."""

import heapq
import io
import tempfile

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from fastvideo.v1.dataset.layout import video_path
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.scan import list_objects
from fastvideo.v1.dataset.video import iter_frames
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import Phase

logger = init_logger(__name__)

NUM_VIDEOS = 16
_COLUMNS = 2
_FRAMES = 3
_FRAME_WIDTH = 200
_MARGIN, _GAP, _SEAM = 24, 24, 4
_FONT_SIZE, _LINE_HEIGHT, _LINES = 15, 21, 2
_PAPER, _INK, _EMPTY = (250, 250, 248), (40, 40, 44), (225, 225, 222)


def render_contact_sheet(run: Run, num_videos: int = NUM_VIDEOS) -> bytes | None:
    """A PNG of the newest videos of the run, in data-set order; None if there is none."""
    newest = _newest(run, num_videos)
    cells = []
    for id, prompt in newest:
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
    """First, middle and last frame side by side."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(video)
        file.flush()
        frames = list(iter_frames(file.name))
    if not frames:
        raise ValueError("the video has no frames")
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)]
    height, width = chosen[0].shape[:2]
    size = (_FRAME_WIDTH, max(1, round(height * _FRAME_WIDTH / width)))
    strip = Image.new("RGB", (_FRAMES * (_FRAME_WIDTH + _SEAM) - _SEAM, size[1]), _PAPER)
    for number, frame in enumerate(chosen):
        resized = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
        strip.paste(resized, (number * (_FRAME_WIDTH + _SEAM), 0))
    return strip


def _sheet(cells: list[tuple[Image.Image, str]]) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    columns = min(_COLUMNS, len(cells))
    cell_width = cells[0][0].width
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(strip.height for strip, _ in row) + 8 + _LINES * _LINE_HEIGHT for row in rows]
    width = 2 * _MARGIN + columns * (cell_width + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + sum(heights) + _GAP * (len(rows) - 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (strip, prompt) in enumerate(row):
            left = _MARGIN + column * (cell_width + _GAP)
            draw.rectangle((left, top, left + cell_width - 1, top + strip.height - 1), _EMPTY)
            sheet.paste(strip, (left, top))
            for number, line in enumerate(_wrap(prompt, font, cell_width)):
                draw.text((left, top + strip.height + 6 + number * _LINE_HEIGHT), line, _INK, font)
        top += height + _GAP
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit, the last cut with an ellipsis where there is more."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < _LINES:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(line) > width:
        line = line.removesuffix(" ...").rstrip()[:-1].rstrip() + " ..."
    return line


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
