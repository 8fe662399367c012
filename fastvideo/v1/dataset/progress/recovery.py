"""Objects that a run's ledger does not tell of: made by a process that died before it did, or for another run."""

import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.ahead import map_ahead
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.quality import QualityMeter
from fastvideo.v1.dataset.objects.state_file import DamagedObject, verify_state
from fastvideo.v1.dataset.objects.video import iter_frames
from fastvideo.v1.dataset.progress.ledger import (
    LEDGER_SCHEMA,
    LedgerRow,
    LedgerWriter,
    last_rows,
    read_ledger,
    write_rows,
)
from fastvideo.v1.dataset.progress.scan import Scan
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

logger = init_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Objects that were indexed, and those that were put aside to be made again."""

    indexed: int
    damaged: int


def index_recovered(run: Run, scan: Scan, held: Mapping[Phase, pa.Array] | None = None) -> Recovery:
    """Indexes every object of the scan without a ledger row; scan again if any was damaged.

    What another run's ledger tells of an object holds for this run, too; what none tells of is read and verified.
    Objects whose ids are ``held`` are left to those who are at work on them and have yet to write their rows.
    """
    unindexed = {phase: scan[phase].unindexed for phase in ALL_PHASES}
    for phase, ids in (held or {}).items():
        unindexed[phase] = _without(unindexed[phase], ids)
    counts = [_index_phase(run, phase, objects) for phase, objects in unindexed.items() if len(objects)]
    return Recovery(indexed=sum(indexed for indexed, _ in counts), damaged=sum(damaged for _, damaged in counts))


def _index_phase(run: Run, phase: Phase, unindexed: pa.Table) -> tuple[int, int]:
    known = _known_elsewhere(run, phase, unindexed)
    write_rows(run, phase, known)
    unknown = _without(unindexed, known["id"].combine_chunks())["id"].to_pylist()
    if unknown:
        logger.info("%s: %d objects of which no ledger tells are verified", phase, len(unknown))
    damaged = 0
    with LedgerWriter(run, phase, attempt="recovered") as ledger:
        for row in map_ahead(partial(_verified_row, run, phase), unknown):
            if row is None:
                damaged += 1
            else:
                ledger.add(row)
    return len(unindexed) - damaged, damaged


def _known_elsewhere(run: Run, phase: Phase, objects: pa.Table) -> pa.Table:
    """The rows of other runs' ledgers about ``objects``, as far as these still have the size that was written."""
    known = LEDGER_SCHEMA.empty_table()
    for other in list_runs(run.output):
        if other.name != run.name and (other.store_uri, other.keys[phase]) == (run.store_uri, run.keys[phase]):
            rows = read_ledger(other, phase)
            size = objects["bytes"].take(pc.index_in(rows["id"], objects["id"].combine_chunks()))
            known = last_rows(pa.concat_tables([known, rows.filter(pc.equal(rows["bytes"], size))]))
    return known


def _without(objects: pa.Table, ids: pa.Array) -> pa.Table:
    return objects.filter(pc.invert(pc.is_in(objects["id"], ids)))


def _verified_row(run: Run, phase: Phase, id: str) -> LedgerRow | None:
    """A row of what can be told of an object now; None for one that is damaged, and put aside, here or by another."""
    path = object_path(phase, run.keys[phase], id)
    try:
        data = run.objects.read(path)
        metrics = _verify(phase, data, path)
    except FileNotFoundError:
        return None
    except DamagedObject as error:
        logger.warning("%s; it is put aside at %s and made again", error, run.objects.set_aside(path))
        return None
    digest = hashlib.sha256(data).hexdigest()
    return LedgerRow(id=id, bytes=len(data), sha256=digest, started=time.time(), metrics=metrics)


def _verify(phase: Phase, data: bytes, path: str) -> dict[str, float | int] | None:
    if phase is not Phase.DECODE:
        verify_state(data, path)
        return None
    return _measure(data, path)


def _measure(data: bytes, path: str) -> dict[str, float | int]:
    """A video's quality numbers: they need every frame decoded, and so show that it plays."""
    meter = QualityMeter()
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        try:
            for frame in iter_frames(file.name):
                meter.update(frame[None])
        except ValueError as error:
            raise DamagedObject(f"{path}: {error}") from error
    return asdict(meter.result())
