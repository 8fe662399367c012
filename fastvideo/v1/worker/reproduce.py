"""One stored sample made again from its prompt alone, and held against what is stored."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import image_path, object_path
from fastvideo.v1.dataset.objects.comparison import Comparison, compare_objects
from fastvideo.v1.dataset.objects.state_file import DamagedObject
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.progress.ledger import LedgerWriter, read_ledger
from fastvideo.v1.dataset.progress.scan import INPUT_COLUMNS, scan
from fastvideo.v1.dataset.runs.fingerprint import check_model
from fastvideo.v1.dataset.runs.resolve import package_versions
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, part_path, to_parquet
from fastvideo.v1.dataset.waves.shards import Shard, read_shard, write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import PHASE_JOBS, JobSettings
from fastvideo.v1.worker.stage_job import engine_settings

NOT_STORED = "it is not stored"
LOWEST_PSNR = 30.0  # decibels: what others call good enough where bytes cannot be equal


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """``differences`` are those of devices, attention backends, layouts, packages and stages; without any, equal bytes
    are promised.
    """

    id: str
    run: str
    prompt: str
    seconds: float
    differences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def is_missing(self) -> bool:
        """Whether some of the sample's objects are not stored."""
        return any(comparison.why_not == NOT_STORED for comparison in self.comparisons)

    def is_reproduced(self, lowest_psnr: float = LOWEST_PSNR) -> bool:
        """Whether the video is the stored one (or as close as ``lowest_psnr``), and all before it equal as promised."""
        return all(self._holds(comparison, lowest_psnr) for comparison in self.comparisons)

    def _holds(self, comparison: Comparison, lowest_psnr: float) -> bool:
        if comparison.why_not is not None:
            return False
        if comparison.phase is Phase.DECODE:
            return comparison.is_equal or comparison.psnr is None or comparison.psnr >= lowest_psnr
        return comparison.is_equal or bool(self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def reproduce(run: Run, id: str, engine: Mapping[str, Any] | None = None) -> Reproduction:
    """Makes the sample whose id begins with ``id`` in a place of its own, through all phases on one device.

    ``engine`` holds settings that shape no result, such as ``device``. Nothing is written to the run. Raises
    ``ValueError`` for an id that is not one sample's, and for a model other than the run's.
    """
    row = _find(run, id)
    check_model(run, run.model_path)
    with tempfile.TemporaryDirectory(prefix="fastvideo-reproduce-") as folder:
        again = replace(run, output=Store(folder), store_uri=None)
        again.output.create(part_path(again.name, 0), to_parquet(row))
        if (image := row["image"][0].as_py()) is not None:
            again.objects.create(image_path(image), run.objects.read(image_path(image)))
        config = RunConfig(prompts="(one sample)", output=folder)
        here = dict.fromkeys(ALL_PHASES, "")
        for shard in write_shards(again, scan(again), config, 0):
            here[shard.phase] = _make(again, shard, engine_settings(run, engine or {}))
        made = [read_ledger(again, phase)["seconds"] for phase in ALL_PHASES]
        return Reproduction(
            id=row["id"][0].as_py(),
            run=run.name,
            prompt=row["prompt"][0].as_py(),
            seconds=sum(pc.sum(seconds).as_py() or 0.0 for seconds in made),
            differences=tuple(_differences(run, row["id"][0].as_py(), here[Phase.DENOISE])),
            comparisons=tuple(_compare_all(run, again, row)),
        )


def _find(run: Run, id: str) -> pa.Table:
    """The one row of ``SAMPLE_SCHEMA`` whose id begins with ``id``."""
    batches = [batch.filter(pc.starts_with(batch["id"], id)) for batch in run.iter_batches()]
    found = pa.Table.from_batches(batches, SAMPLE_SCHEMA)
    if len(found) != 1:
        what = f"is the beginning of {len(found)} ids" if len(found) else "is no sample"
        raise ValueError(f"{id!r} {what} of run {run.name}; ids are in the published table's column `id`")
    return found


def _make(run: Run, shard: Shard, engine: FastVideoArgs) -> str:
    """Runs one phase in this process; returns what the ledger says of where that was."""
    worker = GPUWorker(engine, (shard.phase,))
    worker.init_device()
    worker.load()
    job = PHASE_JOBS[shard.phase](run, worker, JobSettings(checkpoint_every=0), lambda: False)
    with LedgerWriter(run, shard.phase) as ledger:
        for group in job.groups(read_shard(run, shard.path)):
            for product in job.make(group, [job.fetch(item) for item in group]):
                row = job.commit(product)
                assert row is not None, "nobody else writes here"
                ledger.add(row)
    made_on = worker.made_on
    worker.shutdown()
    return made_on


def _differences(run: Run, id: str, here: str) -> Iterator[str]:
    ledger = read_ledger(run, Phase.DENOISE)
    (made_on,) = ledger.filter(pc.equal(ledger["id"], id))["device"].to_pylist() or [None]
    if made_on not in (here, here.rpartition(" (")[0]):  # older ledgers tell of the device alone
        yield f"made on {made_on or 'a device that no ledger row tells of'}, here on {here}"
    versions = package_versions()
    for package, version in run.versions.items():
        if versions.get(package) != version:
            yield f"{package} was {version}, here {versions.get(package)}"
    stages = describe_pipeline(run.model_path).stage_versions
    for phase in ALL_PHASES:
        if dict(stages[phase]) != dict(run.stage_versions[phase]):
            yield f"stages of {phase} were {dict(run.stage_versions[phase])}, here {dict(stages[phase])}"


def _compare_all(run: Run, again: Run, row: pa.Table) -> Iterator[Comparison]:
    inputs = [id for name in INPUT_COLUMNS if (id := row[name][0].as_py()) is not None]
    ids = {
        Phase.ENCODE: dict.fromkeys(inputs),
        Phase.DENOISE: row["id"].to_pylist(),
        Phase.DECODE: row["id"].to_pylist(),
    }
    for phase, names in ids.items():
        for name in names:
            path = object_path(phase, run.keys[phase], name)
            try:
                stored = run.objects.read(path)
                yield compare_objects(phase, path, stored, again.objects.read(path))
            except FileNotFoundError:
                yield Comparison(phase=phase, path=path, why_not=NOT_STORED)
            except DamagedObject as error:
                yield Comparison(phase=phase, path=path, why_not=str(error).removeprefix(f"{path}: "))
