"""Appending samples to a run: parts of Parquet, each numbered and created once, whoever plans at the same time."""

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.samples import SAMPLE_SCHEMA, from_parquet, num_parts, part_path, to_parquet
from fastvideo.v1.dataset.scan import INDEX_SCHEMA, read_index

PART_ROWS = 65_536


class SampleLog:
    """The samples of a run and those being added; without ``write`` the added ones stay in memory.

    Part n is written only by a planner that has seen all parts before it: ids never repeat across parts. Another
    planner's part found in our place is taken in, and our rows go on without its ids.
    """

    def __init__(self, run: Run, *, write: bool) -> None:
        self._run, self._write = run, write
        self._next_part = num_parts(run.output, run.name)
        self._index = [read_index(run)]
        self._known = _packed(self._index[0]["id"])
        self._columns: dict[str, list[object]] = {name: [] for name in SAMPLE_SCHEMA.names}
        self.num_new = 0

    def __contains__(self, packed_id: bytes) -> bool:
        return packed_id in self._known

    @property
    def num_samples(self) -> int:
        """Samples of the run, those that wait for a flush left out."""
        return sum(len(table) for table in self._index)

    def append(self, packed_id: bytes, **values: object) -> None:
        """Adds a sample that is not in the log: a value for each column of ``SAMPLE_SCHEMA``."""
        self._known.add(packed_id)
        for name, column in self._columns.items():
            column.append(values[name])
        if len(self._columns["id"]) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last flush."""
        rows = pa.table(self._columns, schema=SAMPLE_SCHEMA)
        self._columns = {name: [] for name in SAMPLE_SCHEMA.names}
        while len(rows):
            if not self._write or self._run.output.create(self._part(), to_parquet(rows)):
                self._next_part += 1
                self._index.append(_compact(rows))
                self.num_new += len(rows)
                return
            theirs = from_parquet(self._run.output.read(self._part()), INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
            self._next_part += 1
            self._index.append(theirs)
            self._known |= _packed(theirs["id"])
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], theirs["id"].combine_chunks())))

    def index(self) -> pa.Table:
        """Ids and input ids of all samples, for a scan."""
        return pa.concat_tables(self._index)

    def _part(self) -> str:
        return part_path(self._run.name, self._next_part)


def _compact(rows: pa.Table) -> pa.Table:
    return rows.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)


def _packed(ids: pa.ChunkedArray) -> set[bytes]:
    return {bytes.fromhex(id) for chunk in ids.chunks for id in chunk.to_pylist()}
