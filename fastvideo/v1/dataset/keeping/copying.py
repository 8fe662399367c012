"""Copying an output to another store: what the copy stopped at is there the next time, and none is seen before it is
whole.

Objects come first, each read whole, checked and created exclusively; then what indexes them; run records, tables and
the card, which make it a data set, come last.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.ahead import map_ahead
from fastvideo.v1.dataset.keeping.needs import ObjectFolder, needed_ids, published_objects, run_folders
from fastvideo.v1.dataset.keeping.object_check import Checked, Finding, FolderCheck, Kind
from fastvideo.v1.dataset.layout import CARD, CONTACT_SHEET, DATA, RUNS, planning_dir, run_path, samples_dir, waves_dir
from fastvideo.v1.dataset.objects.store import Listing, ObjectInfo, Store
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.dataset.runs.samples import from_parquet, to_parquet

_MUTABLE = ("failed", "rejected")  # folders of a run whose files come, change and go


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """Objects and bytes that were copied now, beside ``num_there`` that had been before.

    ``problems`` keep the copy from becoming visible: damaged objects, and published ones that are gone.
    """

    num_objects: int
    num_bytes: int
    num_there: int
    problems: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the target is a data set now."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"is_whole": self.is_whole}


def copy_output(output: Store, target: Store, progress: Callable[[int, int], None] | None = None) -> CopyReport:
    """Copies every run of ``output`` and its published data set, with the objects of a store apart, into ``target``.

    What is there already stays and is not read again. Raises ``ValueError`` for a target that holds something else.
    """
    if output.uri("") == target.uri(""):
        raise ValueError(f"--to {target.uri('')} is the data set itself")
    target.check_exclusive_create()
    runs = list_runs(output)
    if not runs:
        raise ValueError(f"{output.uri('')} holds no run to copy")
    # Listed before the objects, so that nothing is copied that tells of an object which is not.
    records = {run.name: output.list(f"{RUNS}/{run.name}") for run in runs}
    published = published_objects(output)
    tables = [info.path for info in output.list(DATA) if info.path.endswith(".parquet")]
    report = _copy_objects(target, runs, published, progress)
    if report.is_whole:
        for run in runs:
            _copy_run(run, records[run.name], target)
        if tables:
            _copy_published(output, target, tables, runs)
    return report


class _FolderCopy(FolderCheck):
    """Copies the objects of a folder that are whole and not there yet."""

    decodes = False

    def __init__(
        self, target: Store, folder: ObjectFolder, runs: Sequence[Run], needed: pa.Array, published: pa.Table | None
    ) -> None:
        super().__init__(folder, runs, needed, published, repair=False)
        self._target = target
        self._listed: tuple[str, dict[str, int]] = ("", {})  # the target's objects of the <aa> folder at hand
        self.num_there = 0

    def wants(self, info: ObjectInfo) -> bool:
        prefix = info.path.rpartition("/")[0]
        if self._listed[0] != prefix:
            self._listed = prefix, {info.path: info.size for info in self._target.list(prefix)}
        size = self._listed[1].get(info.path)
        if size not in (None, info.size):
            raise ValueError(
                f"{self._target.uri(info.path)} is there with {size} bytes, not {info.size}: it was made by others; "
                "verify the target, or choose an empty one"
            )
        self.num_there += size is not None
        return size is None

    def take(self, path: str, data: bytes) -> None:
        self._target.create(path, data)


def _copy_objects(
    target: Store,
    runs: Sequence[Run],
    published: dict[ObjectFolder, pa.Table],
    progress: Callable[[int, int], None] | None,
) -> CopyReport:
    needed = needed_ids(runs)
    num_objects = num_bytes = num_there = 0
    problems: list[Finding] = []
    for folder in dict.fromkeys([*needed, *published]):
        sharing = [run for run in runs if folder in run_folders(run)]
        ids = needed.get(folder, pa.array([], pa.string()))
        copy = _FolderCopy(target, folder, sharing, ids, published.get(folder))
        for checked in copy.run():
            found = _problems(checked)
            problems += found
            if checked.size is not None and not found:
                num_objects, num_bytes = num_objects + 1, num_bytes + checked.size
                if progress is not None:
                    progress(num_objects, num_bytes)
        num_there += copy.num_there
    return CopyReport(num_objects=num_objects, num_bytes=num_bytes, num_there=num_there, problems=tuple(problems))


def _problems(checked: Checked) -> list[Finding]:
    return [finding for finding in checked.findings if finding.kind in (Kind.DAMAGED, Kind.BROKEN)]


def _copy_run(run: Run, records: Listing, target: Store) -> None:
    """The ledger and all that may change, then the samples, then the record that makes the run visible."""
    folder = f"{RUNS}/{run.name}"
    passing = tuple(f"{folder}/" for folder in (waves_dir(run.name), planning_dir(run.name)))
    paths = [info.path for info in records if not info.path.startswith(passing)]
    mutable = [path for path in paths if path.removeprefix(f"{folder}/").startswith(_MUTABLE)]
    samples = [path for path in paths if path.startswith(samples_dir(run.name))]
    indexes = [path for path in paths if path not in {*mutable, *samples, run_path(run.name)}]
    for name in _MUTABLE:
        for info in target.list(f"{folder}/{name}"):
            if info.path not in mutable:
                target.delete(info.path)
    for path, data in zip(mutable, run.output.read_many(mutable), strict=True):
        target.overwrite(path, data)
    try:
        _create_all(run.output, target, indexes)
    except FileNotFoundError:  # the run at work has merged files of its ledger into others
        now = [info.path for info in run.output.list(f"{folder}/ledger")]
        _create_all(run.output, target, [*now, *(path for path in indexes if not path.startswith(f"{folder}/ledger/"))])
    _create_all(run.output, target, samples)
    record = replace(run, store_uri=None).to_json() if run.store_uri else run.output.read(run_path(run.name))
    target.create(run_path(run.name), record)


def _create_all(output: Store, target: Store, paths: Sequence[str]) -> None:
    def copy(path: str) -> None:
        data = output.read(path)
        if not target.create(path, data) and target.read(path) != data:
            raise ValueError(f"{target.uri(path)} is there and is another; choose an empty target")

    for _ in map_ahead(copy, paths):
        pass


def _copy_published(output: Store, target: Store, tables: Sequence[str], runs: Iterable[Run]) -> None:
    """Tables, then the card, which names them and so is the switch, then older tables go."""
    apart = sorted({f"{run.objects.uri('')}/" for run in runs if run.store_uri})
    before = [info.path for info in target.list(DATA)]
    for path in tables:
        data = output.read(path)
        if apart:
            target.overwrite(path, to_parquet(_with_own_paths(from_parquet(data), apart)))
        else:
            target.create(path, data)
    for path in (CONTACT_SHEET, CARD):
        if output.exists(path):
            target.overwrite(path, output.read(path))
    for path in set(before) - set(tables):
        target.delete(path)


def _with_own_paths(table: pa.Table, stores: Sequence[str]) -> pa.Table:
    """The table with paths into one of the ``stores`` made relative, as the copy has its objects with it."""
    for index, name in enumerate(table.column_names):
        if name.endswith("_path"):
            column = table[name]
            for store in stores:
                inside = pc.utf8_slice_codeunits(column, len(store))
                column = pc.if_else(pc.starts_with(column, store), inside, column)
            table = table.set_column(index, table.schema.field(index), column)
    return table
