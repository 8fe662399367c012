"""What a stage job does with one item of its shard: fetch its inputs, make it, hand over the object.

``fetch`` and ``commit`` may run beside ``make``, which alone touches the device.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from fastvideo.v1.dataset.objects.state_file import DamagedObject, unpack_state
from fastvideo.v1.dataset.progress.ledger import LedgerRow
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import Sample
from fastvideo.v1.dataset.runs.samples import to_samples
from fastvideo.v1.distributed.parallel_state import get_control_group
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import State
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.heartbeat import Heartbeat

T = TypeVar("T")
_SIZE = {"height", "width", "num_frames"}


class InputMissing(Exception):
    """What an item is made from is not there: an earlier phase failed on it, or has yet to make it again."""


class InputDamaged(InputMissing):
    """It was there, but not what had been written; it has been put aside."""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How the work is done; none of these changes a result."""

    text_batch_size: int = 256
    tries: int = 3
    checkpoint_every: int = 10
    rank_timeout: float = 600.0
    failure_seconds: float = 30.0  # that a rank whose call failed waits for the others to come out of theirs
    suspects: Mapping[str, int] = field(default_factory=dict)  # taken last: see ShardHistory


@dataclass(frozen=True)
class Product:
    """One finished object, not yet committed: its bytes, or the local file that holds them."""

    id: str
    path: str
    content: bytes | Path
    started: float
    seconds: float
    metrics: Mapping[str, Any] | None = None


class PhaseJob(ABC):
    """One phase's part of a stage job."""

    phase: ClassVar[Phase]

    def __init__(self, run: Run, worker: GPUWorker, settings: JobSettings, is_stopping: Callable[[], bool]) -> None:
        self.run = run
        self.worker = worker
        self.settings = settings
        # Ranks that wait for a hung one are to tell of it first.
        self.heartbeat = Heartbeat(least=2 * settings.rank_timeout)
        self.is_stopping = is_stopping  # all ranks of the model group ask at the same point, and hear the same
        self.leads = get_control_group().rank == 0  # the one rank of the model group that reads and writes the stores

    @abstractmethod
    def groups(self, rows: pa.Table) -> list[list[Any]]:
        """The shard's items, in groups that are made in one call."""

    @abstractmethod
    def path(self, item: Any) -> str:
        """Where the item's object goes."""

    def fetch(self, item: Any) -> Any:
        """Reads what the item is made from; raises :class:`InputMissing`."""

    @abstractmethod
    def make(self, items: Sequence[Any], inputs: Sequence[Any]) -> Iterator[Product]:
        """Runs the pipeline and yields one product an item."""

    def has_own_size(self, item: Any) -> bool:
        """Whether an item takes another amount of memory than others, because it asks for another canvas or length."""
        return False

    def clean_up(self, item: Any) -> None:
        """Removes what only an unfinished item needs; called once it is committed, and after a try that failed."""

    @cached_property
    def _made_on(self) -> str:
        return self.worker.made_on

    def commit(self, product: Product) -> LedgerRow | None:
        """Stores a product; None if another process had stored it already."""
        store = self.run.objects
        if isinstance(product.content, Path):
            data = product.content.read_bytes()
            is_new = store.create_from_file(product.path, str(product.content))
        else:
            data = product.content
            is_new = store.create(product.path, data)
        if not is_new:
            return None
        return LedgerRow(
            id=product.id,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            seconds=product.seconds,
            device=self._made_on,
            started=product.started,
            metrics=product.metrics,
        )

    def _read_state(self, path: str) -> State:
        return self._read_verified(path, unpack_state)

    def _read_verified(self, path: str, verify: Callable[[bytes, str], T]) -> T:
        """What ``verify`` makes of the object at ``path``; one that it finds damaged is put aside."""
        try:
            return verify(self.run.objects.read(path), path)
        except FileNotFoundError:
            raise InputMissing(path) from None
        except DamagedObject as error:
            aside = self.run.objects.set_aside(path)
            raise InputDamaged(f"{error}; put aside at {aside}, to be made again") from None


class SampleJob(PhaseJob):
    """A phase that works on one sample at a time."""

    def groups(self, rows: pa.Table) -> list[list[Sample]]:
        return [[sample] for batch in rows.to_batches() for sample in to_samples(batch, {})]

    def has_own_size(self, item: Sample) -> bool:
        return not _SIZE.isdisjoint(item.overrides)
