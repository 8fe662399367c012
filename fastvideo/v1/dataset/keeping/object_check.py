"""One folder of objects, each read and held against all that is known of it."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from fastvideo.v1.dataset.ahead import map_ahead
from fastvideo.v1.dataset.keeping.needs import PUBLISHED_IDS, ByPrefix, ObjectFolder
from fastvideo.v1.dataset.layout import image_path, object_id, object_path
from fastvideo.v1.dataset.objects.state_file import DamagedObject, verify_state
from fastvideo.v1.dataset.objects.store import ObjectInfo, Store
from fastvideo.v1.dataset.objects.video import probe
from fastvideo.v1.dataset.progress.ledger import LEDGER_SCHEMA, read_ledger
from fastvideo.v1.dataset.runs.row_images import verified_image
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase

_LEDGER_COLUMNS = ["id", "bytes", "sha256"]
_CANVAS = ("height", "width", "num_frames")


class Kind(StrEnum):
    """What can be wrong with an object: the first is damage, the next two are gaps, the others harm nobody."""

    DAMAGED = "damaged"  # it is not what was written, or not what its sample asks for
    LOST = "lost"  # it was there, as the ledger (of an image, a sample) tells, and is not
    BROKEN = "broken"  # the published table names it, and it is not there
    STALE = "stale"  # whole, but the ledger or the published table tells another checksum
    UNINDEXED = "unindexed"  # no ledger row; the next run looks at it and writes one
    ORPHAN = "orphan"  # no run and no published row needs it


@dataclass(frozen=True)
class Finding:
    """One object (or, for orphans of a whole key, their folder) and why it is named."""

    kind: Kind
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One object looked at; ``size`` is None unless it was read."""

    findings: tuple[Finding, ...] = ()
    size: int | None = None
    put_aside: bool = False


@dataclass(frozen=True)
class _Known:
    """One object that is there, and what is known of it."""

    info: ObjectInfo
    digests: frozenset[tuple[int, str]]  # bytes and SHA-256, of every ledger row
    is_published: bool
    published_digest: str | None
    canvas: Mapping[str, int] | None


class FolderCheck:
    """The objects of ``folder``, of which ``runs`` have ledgers, one ``<aa>`` after another.

    Reads the ledgers at once, and so before it lists: what they tell of is there by then. Of the rows of an id any may
    tell what lies there, so that all count and not the last. Unless it ``decodes``, a video of the ledger's checksum is
    whole.
    """

    decodes = True

    def __init__(
        self, folder: ObjectFolder, runs: Sequence[Run], needed: pa.Array, published: pa.Table | None, *, repair: bool
    ) -> None:
        self._folder, self._repair = folder, repair
        self._store = runs[0].objects if runs else Store(folder.store)
        self._judges_orphans = not any(run.store_uri for run in runs)  # another output may need what we do not
        self._has_ledger = bool(runs) and folder.phase is not None
        self._ledger = ByPrefix(_ledger(runs, folder.phase))
        self._published = ByPrefix(PUBLISHED_IDS.empty_table() if published is None else published)
        self._needed = ByPrefix(pa.table({"id": needed}))
        self._canvases = ByPrefix(_canvases(runs)) if runs and folder.phase is Phase.DECODE else None

    def run(self) -> Iterator[Checked]:
        """A result for each object that is there, and for each that should be."""
        return map_ahead(self._check, self._known())

    def wants(self, info: ObjectInfo) -> bool:
        """Whether to read the object; for those who do more than look."""
        return True

    def take(self, path: str, data: bytes) -> None:
        """Does more than look, in some thread, at an object that was read and found whole."""

    def _known(self) -> Iterator[_Known | Finding]:
        told = self._needed if self._folder.phase is None else self._ledger
        expected = told.prefixes() | self._published.prefixes()
        for infos in self._store.list_sharded(self._folder.path):
            there = {id: info for info in infos if (id := self._id(info.path)) is not None}
            if there:
                prefix = next(iter(there))[:2]
                expected.discard(prefix)
                yield from self._look_at(prefix, there)
        for prefix in sorted(expected):
            yield from self._look_at(prefix, {})

    def _id(self, path: str) -> str | None:
        return path.rpartition("/")[2] if self._folder.phase is None else object_id(self._folder.phase, path)

    def _path(self, id: str) -> str:
        return image_path(id) if self._folder.phase is None else object_path(self._folder.phase, self._folder.key, id)

    def _look_at(self, prefix: str, there: Mapping[str, ObjectInfo]) -> Iterator[_Known | Finding]:
        needed = set(self._needed.rows(prefix)["id"].to_pylist())
        published = {row["id"]: row["sha256"] for row in self._published.rows(prefix).to_pylist()}
        canvases = {row.pop("id"): row for row in self._canvases.rows(prefix).to_pylist()} if self._canvases else {}
        digests: dict[str, set[tuple[int, str]]] = defaultdict(set)
        for row in self._ledger.rows(prefix).to_pylist():
            digests[row["id"]].add((row["bytes"], row["sha256"]))
        for id in sorted(published.keys() - there.keys()):
            yield Finding(Kind.BROKEN, self._path(id), "the published table names it, and it is gone")
        told = needed if self._folder.phase is None else digests.keys() & needed  # an image is there before its sample
        for id in sorted(told - there.keys() - published.keys()):
            teller = "a sample starts from it" if self._folder.phase is None else "the ledger tells of it"
            yield Finding(Kind.LOST, self._path(id), f"{teller}, and it is gone")
        for id, info in there.items():
            if id in needed or id in published:
                if not self.wants(info):
                    continue
                known = frozenset(digests.get(id, ()))
                yield _Known(info, known, id in published, published.get(id), canvases.get(id))
            elif self._judges_orphans:
                yield Finding(Kind.ORPHAN, info.path, f"no run needs it ({info.size} bytes)")

    def _check(self, item: _Known | Finding) -> Checked:
        if isinstance(item, Finding):
            return Checked(findings=(item,))
        path = item.info.path
        try:
            data = self._store.read(path)
        except FileNotFoundError:  # since the listing
            kind = Kind.BROKEN if item.is_published else Kind.LOST
            return Checked(findings=(Finding(kind, path, "it went while it was about to be read"),))
        digest = hashlib.sha256(data).hexdigest()
        try:
            self._verify(data, digest, item)
        except DamagedObject as error:
            reason = str(error).removeprefix(f"{path}: ")
            if self._repair:
                reason += f"; put aside at {self._store.set_aside(path)}"
            return Checked(findings=(Finding(Kind.DAMAGED, path, reason),), size=len(data), put_aside=self._repair)
        self.take(path, data)
        return Checked(findings=tuple(self._remarks(len(data), digest, item)), size=len(data))

    def _verify(self, data: bytes, digest: str, known: _Known) -> None:
        path = known.info.path
        if self._folder.phase is None:
            verified_image(data, path)
        elif self._folder.phase is not Phase.DECODE:
            verify_state(data, path)
        elif known.digests and (len(data), digest) not in known.digests:
            raise DamagedObject(f"{path}: its content is not what the ledger says ({len(data)} bytes)")
        elif self.decodes or not known.digests:
            _check_video(data, path, known.canvas)

    def _remarks(self, size: int, digest: str, known: _Known) -> Iterator[Finding]:
        path = known.info.path
        if self._has_ledger and not known.digests:
            yield Finding(Kind.UNINDEXED, path, "no ledger row")
        elif self._has_ledger and (size, digest) not in known.digests:
            yield Finding(Kind.STALE, path, "whole, but other than the ledger says")
        if known.published_digest not in (None, digest):
            yield Finding(Kind.STALE, path, "other than the published table says; publish again")


def _check_video(data: bytes, path: str, canvas: Mapping[str, int] | None) -> None:
    try:
        info = probe(io.BytesIO(data))
    except ValueError as error:
        raise DamagedObject(f"{path}: it does not play ({error.__cause__})") from error
    for name, asked in (canvas or {}).items():
        if (found := getattr(info, name)) != asked:
            raise DamagedObject(f"{path}: {name}={found}, and its sample asks for {asked}")


def _ledger(runs: Sequence[Run], phase: Phase | None) -> pa.Table:
    schema = pa.schema([LEDGER_SCHEMA.field(name) for name in _LEDGER_COLUMNS])
    tables = [read_ledger(run, phase, _LEDGER_COLUMNS) for run in runs] if phase is not None else []
    return pa.concat_tables([schema.empty_table(), *tables])


def _canvases(runs: Sequence[Run]) -> pa.Table:
    """Height, width and pixel frames of every sample."""
    return pa.concat_tables(
        pa.table({"id": batch["id"], **{name: batch[name].fill_null(getattr(run.sampling, name)) for name in _CANVAS}})
        for run in runs
        for batch in run.iter_batches(["id", *_CANVAS])
    )
