"""What Prefect's UI shows of a run. A view: nothing is ever read back from it."""

import base64
import html
import io
from typing import Any
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from fastvideo.v1.dataset.layout import CONTACT_SHEET
from fastvideo.v1.dataset.publish import PublishReport
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.shown_text import shown
from tasks.board import WaveBoard

_LONGEST_TEXT = 300
_SHEET_WIDTH = 720


def begin_progress(wave: str) -> UUID:
    """A progress bar for one wave."""
    artifact = create_progress_artifact(0.0, key=f"progress-{wave}", description=f"Wave {wave}")
    assert isinstance(artifact, UUID), "in a sync flow Prefect waits for the answer"
    return artifact


def update_progress(artifact: UUID, board: WaveBoard) -> None:
    """Moves a wave's progress bar to where its board stands."""
    update_progress_artifact(artifact, round(board.percent, 1))


def show_shards(wave: str, board: WaveBoard) -> None:
    """A table of a wave's shards, failed ones first."""
    rows = [{name: escape(value) for name, value in row.items()} for row in board.table()]
    create_table_artifact(rows, key=f"shards-{wave}", description=f"Shards of wave {wave}")


def link_data_set(run: Run, report: PublishReport) -> None:
    """A link to the published data set."""
    text = f"{report.num_rows} videos of run {run.name}"
    create_link_artifact(run.output.uri(""), link_text=text, key=f"data-set-{run.name}", description=text)


def show_contact_sheet(run: Run) -> None:
    """The newest videos in one small picture, inside the artifact: a browser may have no way into the store."""
    sheet = Image.open(io.BytesIO(run.output.read(CONTACT_SHEET))).convert("RGB")
    sheet.thumbnail((_SHEET_WIDTH, 4 * _SHEET_WIDTH))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    picture = base64.b64encode(buffer.getvalue()).decode()
    create_markdown_artifact(
        f"![newest videos](data:image/jpeg;base64,{picture})",
        key=f"contact-sheet-{run.name}",
        description="Newest videos",
    )


def escape(value: Any) -> Any:
    """``value`` such that a prompt or an error message in it is shown and never obeyed; numbers as they are."""
    if not isinstance(value, str):
        return value
    cut = value if len(value) <= _LONGEST_TEXT else value[: _LONGEST_TEXT - 1] + "…"
    cut = " ".join(shown(cut).split("\n"))
    return html.escape(cut).replace("|", "&#124;").replace("`", "&#96;").replace("[", "&#91;")
