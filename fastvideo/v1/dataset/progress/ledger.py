"""The ledger: an index of what was finished, when, where and how well; the objects themselves are the truth."""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.layout import ledger_dir
from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import from_parquet, to_parquet
from fastvideo.v1.pipelines.phase import Phase

METRICS_TYPE = pa.struct(
    [
        ("mean_luminance", pa.float64()),
        ("contrast", pa.float64()),
        ("motion", pa.float64()),
        ("black_frames", pa.int32()),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("started", pa.float64()),
        ("attempt", pa.string()),
        ("metrics", METRICS_TYPE),
    ]
)
_FLUSH_ROWS = 256
_FLUSH_SECONDS = 60.0
_SMALL_FILES, _SMALL_BYTES = 128, 2**21  # so many files of less than so many bytes are worth merging
_MERGED_FILES = 512  # at most into one: some ten megabytes
_FILE_ROWS = 2**16  # at most, where there are many at once: some megabytes
_READINGS = 5


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One finished object. ``seconds`` and ``device`` are None for an object that was found, not made.

    ``started`` counts seconds since 1970; ``metrics`` has keys of ``METRICS_TYPE``.
    """

    id: str
    bytes: int
    sha256: str
    started: float
    seconds: float | None = None
    device: str | None = None
    metrics: Mapping[str, float | int] | None = None


class LedgerWriter:
    """Collects rows and writes them as uniquely named files: one each minute or few hundred rows, and at the end.

    A context manager; also an error's way out writes what is there, since those objects exist.
    """

    def __init__(self, run: Run, phase: Phase, attempt: str | None = None) -> None:
        self._run = run
        self._phase = phase
        self._attempt = attempt or f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._rows: list[dict[str, object]] = []
        self._flushed = time.monotonic()

    def add(self, row: LedgerRow) -> None:
        """Takes a row; may write."""
        self._rows.append(asdict(row) | {"attempt": self._attempt})
        if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows taken since the last flush."""
        self._flushed = time.monotonic()
        if self._rows:
            write_rows(self._run, self._phase, pa.Table.from_pylist(self._rows, schema=LEDGER_SCHEMA))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def write_rows(run: Run, phase: Phase, rows: pa.Table) -> None:
    """Adds rows of ``LEDGER_SCHEMA``, in new files."""
    for start in range(0, len(rows), _FILE_ROWS):
        run.output.create(_new_path(run, phase), to_parquet(rows.slice(start, _FILE_ROWS)))


def read_ledger(run: Run, phase: Phase, columns: list[str] | None = None) -> pa.Table:
    """One row an id; of several the one that tells the seconds, and of those the last.

    Without ``seconds`` and ``started`` among its ``columns`` a table may have an id more than once.
    """
    schema = LEDGER_SCHEMA if columns is None else pa.schema([LEDGER_SCHEMA.field(name) for name in columns])
    table = _read_all(run, phase, schema)
    return last_rows(table) if {"seconds", "started"} <= set(schema.names) else table


def last_rows(table: pa.Table) -> pa.Table:
    """One row an id: see :func:`read_ledger`."""
    numbered = table.append_column("made", pc.cast(pc.is_valid(table["seconds"]), pa.int8()))
    ordered = numbered.sort_by([("id", "ascending"), ("made", "ascending"), ("started", "ascending")])
    ids = ordered["id"].combine_chunks()
    if len(ids) < 2:
        return table
    is_last = pa.concat_arrays([pc.not_equal(ids[:-1], ids[1:]), pa.array([True])])
    return ordered.filter(is_last).drop_columns(["made"])


def compact_ledger(run: Run, phase: Phase) -> int:
    """Once there are many small files, writes their rows again as few and removes them; returns how many were merged.

    Whoever is killed in between leaves rows twice, and so do two at once: readers take one row an id.
    """
    small = [info for info in run.output.list(ledger_dir(run.name, phase)) if info.size < _SMALL_BYTES]
    if len(small) < _SMALL_FILES:
        return 0
    for start in range(0, len(small), _MERGED_FILES):
        paths = [info.path for info in small[start : start + _MERGED_FILES]]
        try:
            tables = [_rows(data, LEDGER_SCHEMA) for data in run.output.read_many(paths)]
        except FileNotFoundError:
            return start  # another process is merging them
        run.output.create(_new_path(run, phase), to_parquet(pa.concat_tables(tables)))
        run.output.delete_many(paths)
    return len(small)


def _read_all(run: Run, phase: Phase, schema: pa.Schema) -> pa.Table:
    """The rows of all files; those that were merged into another between listing and reading are looked for anew."""
    for _ in range(_READINGS):
        paths = [info.path for info in run.output.list(ledger_dir(run.name, phase))]
        try:
            tables = [_rows(data, schema) for data in run.output.read_many(paths)]
        except FileNotFoundError:
            continue
        return pa.concat_tables([schema.empty_table(), *tables])
    raise StoreUnavailable(f"the ledger of run {run.name}, phase {phase}, did not hold still to be read")


def _rows(data: bytes, schema: pa.Schema) -> pa.Table:
    """The rows of a file; metrics that are measured no more are left out."""
    return from_parquet(data, schema.names).cast(schema)


def _new_path(run: Run, phase: Phase) -> str:
    return f"{ledger_dir(run.name, phase)}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
