"""Publishing: the tables, the card and the contact sheet of what a run has made so far."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastvideo.v1.dataset.layout import CARD, CONTACT_SHEET, DATA
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.publishing.card import Totals, render_card
from fastvideo.v1.dataset.publishing.contact_sheet import render_contact_sheet
from fastvideo.v1.dataset.publishing.published_rows import PUBLISHED_SCHEMA, published_rows
from fastvideo.v1.dataset.runs.run import Run

ROWS_PER_FILE = 100_000


@dataclass(frozen=True, kw_only=True)
class PublishReport:
    """Where the data set is (URIs) and how many videos it lists."""

    num_rows: int
    data_files: tuple[str, ...]
    card: str
    contact_sheet: str | None


def publish(run: Run) -> PublishReport:
    """Writes ``data/train-*.parquet``, the contact sheet and ``README.md`` into the run's output.

    New tables come first, then the card, which names them and so is the switch, then the old tables go: a reader who
    goes by the card never sees rows twice. Of two who publish at a time the last card stands, with its tables.
    Publishing the same again changes nothing. Raises ``ValueError`` if there is no video yet.
    """
    output = run.output
    before = [info.path for info in output.list(DATA) if info.path.endswith(".parquet")]
    with tempfile.TemporaryDirectory() as folder:
        totals = Totals()
        files = _write_tables(totals.watch(published_rows(run)), Path(folder))
        if not files:
            raise ValueError(f"run {run.name} has no video to publish yet; run it first")
        generation = _generation(files)
        tables = {f"{DATA}/train-{generation}-{n:05d}.parquet": str(file) for n, file in enumerate(files)}
        _create(output, tables)
        sheet = render_contact_sheet(run)
        if sheet is not None:
            output.overwrite(CONTACT_SHEET, sheet)
        pattern = f"{DATA}/train-{generation}-*.parquet"
        output.overwrite(CARD, render_card(run, totals, pattern, has_sheet=sheet is not None).encode())
        # Another may have taken them for old ones while the card did not name them.
        _create(output, {name: file for name, file in tables.items() if not output.exists(name)})
    card = output.read(CARD).decode()  # it may be another's by now
    output.delete_many(path for path in set(before) - set(tables) if f"{path.rpartition('-')[0]}-*" not in card)
    return PublishReport(
        num_rows=totals.num_rows,
        data_files=tuple(output.uri(name) for name in tables),
        card=output.uri(CARD),
        contact_sheet=output.uri(CONTACT_SHEET) if sheet is not None else None,
    )


def _create(output: Store, tables: Mapping[str, str]) -> None:
    for name, file in tables.items():
        output.create_from_file(name, file)


def _write_tables(batches: Iterable[pa.RecordBatch], folder: Path) -> list[Path]:
    files: list[Path] = []
    for piece in _pieces(batches, ROWS_PER_FILE):
        files.append(folder / f"{len(files):05d}.parquet")
        with pq.ParquetWriter(files[-1], PUBLISHED_SCHEMA, compression="zstd") as writer:
            for batch in piece:
                writer.write_batch(batch)
    return files


def _pieces(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[Iterator[pa.RecordBatch]]:
    """The batches in groups of ``size`` rows at most, each to be used up before the next is asked for."""
    queue = iter(batches)

    def group(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        nonlocal queue
        left = size
        while batch is not None:
            yield batch[:left]
            if len(batch) >= left:
                queue = chain([batch[left:]] if len(batch) > left else [], queue)
                return
            left -= len(batch)
            batch = next(queue, None)

    while (first := next(queue, None)) is not None:
        yield group(first)


def _generation(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:8]
