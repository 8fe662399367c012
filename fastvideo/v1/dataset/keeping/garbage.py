"""What lies in outputs and stores and serves nobody any more."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import pyarrow as pa

from fastvideo.v1.dataset.keeping.needs import ByPrefix, ObjectFolder, needed_ids, published_objects
from fastvideo.v1.dataset.layout import (
    DAMAGED,
    PROBES,
    RUNS,
    failed_dir,
    image_id,
    is_name,
    ledger_dir,
    object_id,
    planning_dir,
    run_path,
    step_id,
    waves_dir,
)
from fastvideo.v1.dataset.objects.store import Listing, ObjectInfo, Store
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase


class Waste(StrEnum):
    """Kinds of garbage, in the order in which it goes: a run is hidden first, what it alone needed follows."""

    RUNS = "dropped runs"
    PLANS = "runs whose planning was broken off"
    OBJECTS = "objects that no run needs"
    IMAGES = "images that no run needs"
    STEPS = "saved steps of samples that are done or that no run needs"
    WAVES = "shards of waves that were broken off"
    TEMPORARY = "temporary files of killed processes"
    DAMAGED = "damaged objects that were put aside"
    PROBES = "probes of killed processes"


@dataclass(frozen=True)
class Garbage:
    """One file or object."""

    kind: Waste
    store: Store
    info: ObjectInfo


@dataclass(frozen=True, kw_only=True)
class Estate:
    """Outputs with all of their runs but ``dropped`` ones; nothing younger than ``before`` (1970) counts as garbage.

    A run is dropped by its name or, where several outputs have one of that name, by its folder's URI; all of its folder
    goes, whatever its age. What a published table names is kept, be its run dropped or not.
    """

    outputs: Sequence[Store]
    dropped: Collection[str]
    before: float

    @cached_property
    def runs(self) -> list[Run]:
        """Those that are kept."""
        return [run for run in self.all_runs if not self.drops(run.output, run.name)]

    @cached_property
    def all_runs(self) -> list[Run]:
        """Those that go among them, unless their records have gone before."""
        return [run for output in self.outputs for run in list_runs(output)]

    @cached_property
    def dropped_folders(self) -> list[tuple[Store, str]]:
        """Output and name of each run that goes; raises ``ValueError`` for what names none of them, or several."""
        folders = [(output, name) for output in self.outputs for name in output.folders(RUNS) if is_name(name)]
        return [self._folder_of(dropped, folders) for dropped in dict.fromkeys(self.dropped)]

    def drops(self, output: Store, name: str) -> bool:
        """Whether that run of ``output`` goes."""
        return any((other.uri(""), dropped) == (output.uri(""), name) for other, dropped in self.dropped_folders)

    def _folder_of(self, dropped: str, folders: Sequence[tuple[Store, str]]) -> tuple[Store, str]:
        found = [(output, name) for output, name in folders if dropped in (name, output.uri(f"{RUNS}/{name}"))]
        if not found:
            names = ", ".join(sorted({name for _, name in folders}))
            raise ValueError(f"run {dropped!r} is not there to be dropped; there are: {names}")
        if len(found) > 1:
            uris = " and ".join(output.uri(f"{RUNS}/{name}") for output, name in found)
            raise ValueError(f"run {dropped!r} is there more than once; say which: {uris}")
        return found[0]

    @cached_property
    def stores(self) -> dict[str, Store]:
        """Every store that objects lie in, by its URI."""
        stores = [*self.outputs, *(run.objects for run in self.all_runs)]
        return {store.uri(""): store for store in stores}

    def garbage(self) -> Iterator[Garbage]:
        """Everything that goes, streamed, the dropped runs' records first."""
        for output, name in self.dropped_folders:
            yield from self._old(Waste.RUNS, output, _record_first(output.list(f"{RUNS}/{name}")), age=False)
        for output in self.outputs:
            yield from self._broken_plans(output)
        yield from self._objects()
        for run in self.runs:
            yield from self._waves(run)
        for store in self.stores.values():
            yield from self._old(Waste.TEMPORARY, store, store.list_temporary())
            yield from self._old(Waste.DAMAGED, store, store.list(DAMAGED))
            yield from self._old(Waste.PROBES, store, store.list(PROBES))

    def _old(self, kind: Waste, store: Store, infos: Sequence[ObjectInfo], age: bool = True) -> Iterator[Garbage]:
        yield from (Garbage(kind, store, info) for info in infos if not age or info.modified < self.before)

    def _broken_plans(self, output: Store) -> Iterator[Garbage]:
        for name in filter(is_name, output.folders(RUNS)):
            if self.drops(output, name):
                continue
            folder = planning_dir(name) if output.exists(run_path(name)) else f"{RUNS}/{name}"
            infos = output.list(folder)
            if any(info.modified >= self.before for info in infos):
                raise ValueError(
                    f"run {name} in {output.uri('')} is being planned, and what it needs is not known yet; "
                    f"collect garbage once that is done, or once {output.uri(folder)} is older than the age given"
                )
            yield from self._old(Waste.PLANS, output, infos)

    def _objects(self) -> Iterator[Garbage]:
        needed = self._needed()
        nobody = pa.array([], pa.string())
        for uri, store in self.stores.items():
            for phase in ALL_PHASES:
                for key in store.folders(phase):
                    folder = ObjectFolder(uri, phase, key)
                    yield from self._objects_of(folder, store, needed.get(folder, nobody))
            images = ObjectFolder(uri, None)
            yield from self._objects_of(images, store, needed.get(images, nobody))

    def _needed(self) -> Mapping[ObjectFolder, pa.Array]:
        needed = {folder: [ids] for folder, ids in needed_ids(self.runs).items()}
        for output in self.outputs:
            for folder, rows in published_objects(output).items():
                needed.setdefault(folder, []).append(rows["id"].combine_chunks())
        return {folder: pa.concat_arrays(ids) for folder, ids in needed.items()}

    def _objects_of(self, folder: ObjectFolder, store: Store, needed: pa.Array) -> Iterator[Garbage]:
        by_prefix = ByPrefix(pa.table({"id": needed}))
        for infos in store.list_sharded(folder.path):
            if infos:
                prefix = infos[0].path.removeprefix(f"{folder.path}/")[:2]
                kept = set(by_prefix.rows(prefix)["id"].to_pylist())
                yield from self._unneeded(folder.phase, store, infos, kept)

    def _unneeded(self, phase: Phase | None, store: Store, infos: Listing, needed: set[str]) -> Iterator[Garbage]:
        """Files of one ``<aa>`` folder; one of a name that is none of ours is left alone."""
        if phase is None:
            unneeded = [info for info in infos if (id := image_id(info.path)) and id not in needed]
            yield from self._old(Waste.IMAGES, store, unneeded)
            return
        done = {id for info in infos if (id := object_id(phase, info.path))}
        unneeded = [info for info in infos if (id := object_id(phase, info.path)) and id not in needed]
        steps = [info for info in infos if (id := step_id(info.path)) and (id in done or id not in needed)]
        yield from self._old(Waste.OBJECTS, store, unneeded)
        yield from self._old(Waste.STEPS, store, steps)

    def _waves(self, run: Run) -> Iterator[Garbage]:
        """Shards of a run that nothing was heard of since ``before``; a wave at work writes to the ledger."""
        waves = defaultdict(list)
        for info in run.output.list(waves_dir(run.name)):
            waves[info.path.split("/")[3]].append(info)
        if not waves:
            return
        folders = [folder(run.name, phase) for phase in ALL_PHASES for folder in (ledger_dir, failed_dir)]
        heard = [info.modified for folder in folders for info in run.output.list(folder)]
        for infos in waves.values():
            if max([*heard, *(info.modified for info in infos)]) < self.before:
                yield from self._old(Waste.WAVES, run.output, infos)


def _record_first(infos: Listing) -> Listing:
    return sorted(infos, key=lambda info: (not info.path.endswith("/run.json"), info.path))
