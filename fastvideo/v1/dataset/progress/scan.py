"""What exists, what is missing: one listing of the store against the samples of a run, in Arrow arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.layout import object_id, phase_folder
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.progress.failures import failed_ids
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

TEXT_COLUMNS, IMAGE_COLUMNS = ("input_id", "negative_input_id"), ("image_input_id",)
INPUT_COLUMNS = TEXT_COLUMNS + IMAGE_COLUMNS  # the encode objects that a sample needs
INDEX_SCHEMA = pa.schema([SAMPLE_SCHEMA.field(name) for name in ("id", *INPUT_COLUMNS)])
_LISTING_SCHEMA = pa.schema([("id", pa.string()), ("bytes", pa.int64()), ("modified", pa.float64())])


@dataclass(frozen=True, kw_only=True)
class PhaseScan:
    """One phase of a run; ids are Arrow arrays of strings.

    ``total`` is done + failed + blocked + missing. ``blocked`` waits for something that failed in an earlier phase;
    ``missing`` can be made. ``unindexed`` has id and bytes of those done without a ledger row. ``seconds`` is
    how long one takes, the median of the ledger's rows, None before the first.
    """

    total: int
    done: int
    blocked: int
    bytes: int
    seconds: float | None
    missing_ids: pa.Array
    failed_ids: pa.Array
    unindexed: pa.Table

    @property
    def missing(self) -> int:
        """How many a run can still make."""
        return len(self.missing_ids)

    @property
    def failed(self) -> int:
        """How many are out of tries."""
        return len(self.failed_ids)


Scan = Mapping[Phase, PhaseScan]


def read_index(run: Run) -> pa.Table:
    """The ids of the run's samples and of their inputs, in data-set order."""
    return pa.Table.from_batches(run.iter_batches(INDEX_SCHEMA.names), INDEX_SCHEMA)


def list_objects(store: Store, phase: Phase, key: str) -> pa.Table:
    """Id, bytes and modification time of each finished object of a phase."""
    tables = [_LISTING_SCHEMA.empty_table()]
    for infos in store.list_sharded(phase_folder(phase, key)):
        rows = [(id, info.size, info.modified) for info in infos if (id := object_id(phase, info.path)) is not None]
        if rows:
            tables.append(pa.table(list(zip(*rows, strict=True)), schema=_LISTING_SCHEMA))
    return pa.concat_tables(tables)


def scan(run: Run, index: pa.Table | None = None) -> Scan:
    """Every phase of ``run`` against its stores; ``index`` spares reading the samples again."""
    index = read_index(run) if index is None else index
    objects = {phase: list_objects(run.objects, phase, run.keys[phase]) for phase in ALL_PHASES}
    samples = _flat(index["id"])
    ids = {Phase.ENCODE: _inputs(index), Phase.DENOISE: samples, Phase.DECODE: samples}
    done = {phase: pc.is_in(ids[phase], _flat(objects[phase]["id"])) for phase in ALL_PHASES}
    failed = {
        phase: pc.and_(pc.is_in(ids[phase], failed_ids(run, phase)), pc.invert(done[phase])) for phase in ALL_PHASES
    }
    blocked = _blocked(index, ids, done, failed)
    return {
        phase: _phase_scan(run, phase, ids[phase], done[phase], failed[phase], blocked[phase], objects[phase])
        for phase in ALL_PHASES
    }


def _inputs(index: pa.Table) -> pa.Array:
    """Each text and each image once; no text has an image's id, so the two need no common table."""
    return pa.concat_arrays([_distinct(index, names) for names in (TEXT_COLUMNS, IMAGE_COLUMNS)])


def _distinct(index: pa.Table, names: Sequence[str]) -> pa.Array:
    chunks = [chunk for name in names for chunk in index[name].chunks]
    return pa.chunked_array(chunks, pa.string()).unique().drop_null()


def _blocked(
    index: pa.Table, ids: Mapping[Phase, pa.Array], done: Mapping[Phase, pa.Array], failed: Mapping[Phase, pa.Array]
) -> dict[Phase, pa.Array]:
    """Neither done nor failed, and what they need is neither done nor can be made."""
    failed_inputs = ids[Phase.ENCODE].filter(failed[Phase.ENCODE])
    needs_failed = reduce(pc.or_, (_flat(pc.is_in(index[name], failed_inputs)) for name in INPUT_COLUMNS))
    denoise = pc.and_(needs_failed, pc.invert(pc.or_(done[Phase.DENOISE], failed[Phase.DENOISE])))
    decode = pc.and_(
        pc.or_(denoise, failed[Phase.DENOISE]), pc.invert(pc.or_(done[Phase.DECODE], failed[Phase.DECODE]))
    )
    nothing = pa.repeat(pa.scalar(False), len(ids[Phase.ENCODE]))
    return {Phase.ENCODE: nothing, Phase.DENOISE: denoise, Phase.DECODE: decode}


def _phase_scan(
    run: Run, phase: Phase, ids: pa.Array, done: pa.Array, failed: pa.Array, blocked: pa.Array, objects: pa.Table
) -> PhaseScan:
    done_ids = ids.filter(done)
    ledger = read_ledger(run, phase, ["id", "seconds"])
    ours = objects.filter(pc.is_in(_flat(objects["id"]), done_ids))
    return PhaseScan(
        total=len(ids),
        done=len(done_ids),
        blocked=pc.sum(blocked).as_py() or 0,
        bytes=pc.sum(ours["bytes"]).as_py() or 0,
        seconds=pc.approximate_median(ledger["seconds"]).as_py(),
        missing_ids=ids.filter(pc.invert(pc.or_(pc.or_(done, failed), blocked))),
        failed_ids=ids.filter(failed),
        unindexed=ours.filter(pc.invert(pc.is_in(ours["id"], _flat(ledger["id"])))).select(["id", "bytes"]),
    )


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
