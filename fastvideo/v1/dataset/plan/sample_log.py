"""Appending samples to a run: parts of Parquet, each numbered and created once, whoever plans at the same time."""

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.progress.scan import INDEX_SCHEMA, read_index
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, from_parquet, num_parts, part_path, to_parquet

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
        self._columns: dict[str, list[object]] = {name: [] for name in SAMPLE_SCHEMA.names}
        self.requests: dict[bytes, int] = {}  # how often each sample, by its packed id, was asked for of this log
        self.num_new = 0
        self._note(self._index[0]["id"])

    @property
    def num_samples(self) -> int:
        """Samples of the run, those that wait for a flush left out."""
        return sum(len(table) for table in self._index)

    def request(self, id: str) -> bool:
        """Notes that a sample is asked for; whether it is not in the log and has to be appended."""
        packed = bytes.fromhex(id)
        count = self.requests.get(packed)
        self.requests[packed] = 1 if count is None else count + 1
        return count is None

    def append(self, **values: object) -> None:
        """Adds a sample that is not in the log: a value for each column of ``SAMPLE_SCHEMA``."""
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
            theirs = _compact(from_parquet(self._run.output.read(self._part()), INDEX_SCHEMA.names))
            self._next_part += 1
            self._index.append(theirs)
            self._note(theirs["id"])
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], theirs["id"].combine_chunks())))

    def index(self) -> pa.Table:
        """Ids and input ids of all samples, for a scan."""
        return pa.concat_tables(self._index)

    def _note(self, ids: pa.ChunkedArray) -> None:
        """Enters samples that are in the run; those that nobody asks for stay at 0."""
        for chunk in ids.chunks:
            for id in chunk.to_pylist():
                self.requests.setdefault(bytes.fromhex(id), 0)

    def _part(self) -> str:
        return part_path(self._run.name, self._next_part)


def _compact(rows: pa.Table) -> pa.Table:
    return rows.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
