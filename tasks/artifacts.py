"""What Prefect's UI shows of a run. A view: nothing is ever read back from it."""

import base64
import html
import io
import json
from typing import Any, Literal
from urllib.parse import quote
from uuid import UUID

import httpx
from PIL import Image
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.utilities.urls import url_for

from fastvideo.v1.dataset.layout import CONTACT_SHEET
from fastvideo.v1.dataset.publishing.publish import PublishReport
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.logger import init_logger
from fastvideo.v1.shown_text import shown

logger = init_logger(__name__)

_LONGEST_TEXT = 300
_SHEET_WIDTH = 720


class LiveArtifact:
    """An artifact that is made once and then changed in place: a page that is open shows the change.

    It is a view: while the server does not answer, nothing is shown, and the work goes on.
    """

    def __init__(self, kind: Literal["markdown", "table", "progress"], key: str, description: str) -> None:
        self._kind, self._key, self._description = kind, key, description
        self._id: UUID | None = None
        self._data: Any = None

    def show(self, data: Any) -> None:
        """Shows ``data``: text, rows as a list of dicts, or a percentage."""
        if data == self._data:
            return
        try:
            if self._id is None:
                self._id = self._create(data)
            else:
                self._change(self._id, data)
            self._data = data
        except httpx.HTTPError as error:
            logger.warning("%s is not shown: %s", self._description, error)

    def _change(self, id: UUID, data: Any) -> None:
        """Without ``update_artifact``, whose event holds all of the data and is kept for a week."""
        change = {"data": json.dumps(data) if self._kind == "table" else data}
        get_client(sync_client=True).request("PATCH", "/artifacts/{id}", path_params={"id": id}, json=change)

    def _create(self, data: Any) -> UUID:
        match self._kind:
            case "markdown":
                made = create_markdown_artifact(data, key=self._key, description=self._description)
            case "table":
                made = create_table_artifact(data, key=self._key, description=self._description)
            case "progress":
                made = create_progress_artifact(data, key=self._key, description=self._description)
        assert isinstance(made, UUID), "in a sync flow Prefect waits for the answer"
        return made


def link_data_set(run: Run, report: PublishReport) -> None:
    """A link to the published data set."""
    text = f"{report.num_rows} videos of run {run.name}"
    create_link_artifact(run.output.uri(""), link_text=text, key=f"data-set-{run.name}", description=text)


def contact_sheet_markdown(sheet: bytes) -> str:
    """A PNG made small, inside the text: a browser may have no way into the store."""
    picture = Image.open(io.BytesIO(sheet)).convert("RGB")
    picture.thumbnail((_SHEET_WIDTH, 4 * _SHEET_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"![newest videos](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def show_contact_sheet(run: Run) -> None:
    """The newest videos that are published, in one picture."""
    create_markdown_artifact(
        contact_sheet_markdown(run.output.read(CONTACT_SHEET)),
        key=f"contact-sheet-{run.name}",
        description="Newest videos",
    )


def run_link(kind: Literal["flow-run", "task-run"], id: UUID | str | None, text: str) -> str:
    """``text`` as a link to the page of a run, where its logs are; text alone where the UI has no address."""
    url = url_for(kind, obj_id=id, default_base_url=None) if id else None
    return f"[{text}]({url})" if url else text


def link(uri: str) -> str:
    """A link to ``uri``; a path on local disk is text, for a browser can't open it from another page."""
    return f"[{escape(uri)}]({quote(uri, safe=':/')})" if "://" in uri else f"`{uri.replace('`', '')}`"


def duration(seconds: float | None) -> str:
    """Two units of time; an ellipsis for what is not known yet."""
    if seconds is None:
        return "…"
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{round(seconds)} s"


def escape(value: Any) -> Any:
    """``value`` such that a prompt or an error message in it is shown and never obeyed; numbers as they are."""
    if not isinstance(value, str):
        return value
    cut = value if len(value) <= _LONGEST_TEXT else value[: _LONGEST_TEXT - 1] + "…"
    cut = " ".join(shown(cut).split("\n"))
    return html.escape(cut).replace("|", "&#124;").replace("`", "&#96;").replace("[", "&#91;")
