"""Objects that were committed by a process that died before its ledger did: verified, then indexed."""

import hashlib
import tempfile
import time
from dataclasses import asdict, dataclass

import pyarrow as pa

from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.quality import QualityMeter
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.scan import Scan
from fastvideo.v1.dataset.state_file import DamagedObject, verify_state
from fastvideo.v1.dataset.video import iter_frames
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

logger = init_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Objects that were indexed, and those that were put aside to be made again."""

    indexed: int
    damaged: int


def index_recovered(run: Run, scan: Scan) -> Recovery:
    """Verifies every object of the scan without a ledger row and indexes it; scan again if any was damaged."""
    counts = [_index_phase(run, phase, scan[phase].unindexed_ids) for phase in ALL_PHASES]
    return Recovery(indexed=sum(indexed for indexed, _ in counts), damaged=sum(damaged for _, damaged in counts))


def _index_phase(run: Run, phase: Phase, ids: pa.Array) -> tuple[int, int]:
    names = ids.to_pylist()
    paths = [object_path(phase, run.keys[phase], id) for id in names]
    damaged = 0
    with LedgerWriter(run, phase, attempt="recovered") as ledger:
        for id, path, data in zip(names, paths, run.objects.read_many(paths), strict=True):
            try:
                metrics = _verify(phase, data, path)
            except DamagedObject as error:
                damaged += 1
                logger.warning("%s; it is put aside at %s and made again", error, run.objects.set_aside(path))
                continue
            digest = hashlib.sha256(data).hexdigest()
            ledger.add(LedgerRow(id=id, bytes=len(data), sha256=digest, started=time.time(), metrics=metrics))
    return len(names) - damaged, damaged


def _verify(phase: Phase, data: bytes, path: str) -> dict[str, float | int | bool | None] | None:
    if phase is not Phase.DECODE:
        verify_state(data, path)
        return None
    return _measure(data, path)


def _measure(data: bytes, path: str) -> dict[str, float | int | bool | None]:
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
