"""The images of prompt rows: looked at while planning, named by what they hold, and kept with the run's objects."""

import hashlib
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from threading import Lock

from fastvideo.v1.dataset.layout import image_path, planning_path
from fastvideo.v1.dataset.objects.state_file import DamagedObject
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.dataset.sources.image_file import BadImage, check_image, read_image
from fastvideo.v1.dataset.sources.image_source import is_remote
from fastvideo.v1.dataset.sources.prompt_row import PromptRow, RejectedRow, rejected
from fastvideo.v1.pipelines.inputs import ImageUse
from fastvideo.v1.shown_text import without_secrets

_THREADS = 8
_ROWS_AHEAD = 32  # at most so many images are in memory at once
_REMEMBERED = 4096
_REASONS = {
    "refused": "image was given, but this model makes videos of prompts alone; leave the column out",
    "required": "no image; this model makes a video of an image and a prompt",
}

Row = PromptRow | RejectedRow


class RowImages:
    """Reads, checks and keeps the images of the rows of ``prompts``; without ``write`` it keeps none."""

    def __init__(self, run: Run, use: ImageUse, prompts: str, *, write: bool) -> None:
        self._run, self._use, self._write = run, use, write
        self._from_remote = is_remote(prompts)
        self._listing = Lock()  # from Python 3.12 on a cached property alone lets every thread list by itself
        self._take_file = lru_cache(_REMEMBERED)(self._take_file_anew)

    def look_up(self, rows: Iterable[Row]) -> Iterator[tuple[Row, str | None]]:
        """Each row in order with its image's SHA-256, or the rejected row that it is for its image's sake."""
        pool = ThreadPoolExecutor(_THREADS)
        pending: deque[tuple[Row, Future[str] | None]] = deque()
        try:
            for row in rows:
                pending.append(self._start(row, pool))
                if pending[0][1] is None or len(pending) > _ROWS_AHEAD:
                    yield _finish(*pending.popleft())
            while pending:
                yield _finish(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)  # a store that is down is not waited for once more by each image

    def _start(self, row: Row, pool: ThreadPoolExecutor) -> tuple[Row, Future[str] | None]:
        if isinstance(row, RejectedRow):
            return row, None
        if self._use == ("required" if row.image is None else "refused"):
            return rejected(row.source, row.prompt, _REASONS[self._use]), None
        if row.image is None:
            return row, None
        return row, pool.submit(self._take, row.image)

    def _take(self, image: str | bytes) -> str:
        return self._keep(image) if isinstance(image, bytes) else self._take_file(image)

    def _take_file_anew(self, source: str) -> str:
        try:
            data = read_image(source, from_remote=self._from_remote)
        except BadImage:
            with self._listing:
                kept = self._kept.get(without_secrets(source))
            if kept is None or not self._run.objects.exists(image_path(kept)):
                raise
            return kept
        return self._keep(data)

    def _keep(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = image_path(sha256)
        if self._run.objects.exists(path):  # then it was found good before
            return sha256
        check_image(data)
        if self._write:
            self._run.objects.create(path, data)
        return sha256

    @cached_property
    def _kept(self) -> dict[str, str]:
        """Images of the output's runs by their source, as it last was: with them work goes on when sources are gone."""
        kept: dict[str, str] = {}
        for run in (*list_runs(self._run.output), self._run):
            for batch in run.iter_batches(["image", "image_source"]):
                known = batch.filter(batch["image_source"].is_valid())
                kept.update(zip(known["image_source"].to_pylist(), known["image"].to_pylist(), strict=True))
        return kept


@contextmanager
def announced(run: Run) -> Iterator[None]:
    """Tells garbage collection, while images are found that no sample in the log may name yet, to leave them."""
    path = planning_path(run.name, uuid.uuid4().hex)
    run.output.create(path, b"")
    try:
        yield
    finally:
        run.output.delete(path)


def _finish(row: Row, taking: "Future[str] | None") -> tuple[Row, str | None]:
    if taking is None:
        return row, None
    try:
        return row, taking.result()
    except BadImage as error:
        return rejected(row.source, row.prompt if isinstance(row, PromptRow) else row.value, str(error)), None


def verified_image(data: bytes, path: str) -> bytes:
    """``data`` as it was kept at ``path``; raises :class:`DamagedObject` if it is other than its name says."""
    if hashlib.sha256(data).hexdigest() != path.rpartition("/")[2]:
        raise DamagedObject(f"{path}: its content does not match its name ({len(data)} bytes)")
    return data
