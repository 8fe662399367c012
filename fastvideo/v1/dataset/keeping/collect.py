"""Garbage collection that may run beside a run: whatever it is unsure of stays."""

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fastvideo.v1.dataset.ahead import map_ahead
from fastvideo.v1.dataset.canonical import digest
from fastvideo.v1.dataset.keeping.garbage import Estate, Garbage, Waste
from fastvideo.v1.dataset.layout import RUNS, is_name, planning_dir, samples_dir, user_path, users_dir
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import num_parts
from fastvideo.v1.pipelines.phase import ALL_PHASES

MIN_AGE_HOURS = 24.0
_BATCH = 500
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Files and bytes by kind, some paths of each, and whether they are gone.

    ``is_whole`` is False if a run was planned or an output came meanwhile: the rest stays, since that may need it.
    """

    files: dict[str, int]
    bytes: dict[str, int]
    examples: dict[str, list[str]]
    deleted: bool
    is_whole: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("files", "bytes", "examples", "deleted", "is_whole")
        return {name: getattr(self, name) for name in names}


def register_output(store: Store, output: Store) -> None:
    """Notes in ``store``, which lies apart from ``output``, that the latter's runs keep their objects there."""
    uri = output.uri("")
    store.create(user_path(digest(uri, 12)), json.dumps({"output": uri}).encode())


def collect_garbage(
    outputs: Sequence[Store],
    *,
    drop: Collection[str] = (),
    min_age_hours: float = MIN_AGE_HOURS,
    delete: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Finds, and with ``delete`` removes, what no run of ``outputs`` and none of their published tables needs.

    Runs that ``drop`` names (or gives the folders' URIs of) need nothing any more, and their records go. Of the rest,
    what is younger than ``min_age_hours`` stays, whatever it is. Before each few hundred deletions runs and outputs are
    looked at again, and the rest stays if a run was planned or an output came to a store meanwhile. Raises
    ``ValueError`` while a run is being planned, for an output without runs, a run without samples, and when a store
    serves outputs that are not given.
    """
    for output in outputs:
        if not output.folders(RUNS):
            raise ValueError(f"{output.uri('')} holds no run; give the --output that `fastvideo dataset run` had")
    before = time.time() - 3600 * min_age_hours
    estate = Estate(outputs=outputs, dropped=drop, before=before)
    _check_samples(estate.runs)
    plans = _plans(estate)
    users = _check_users(estate)
    tally = _Tally(progress)
    is_whole = True
    for batch in _batches(estate.garbage(), _BATCH):
        if delete:
            is_whole = _plans(estate) == plans and _users(estate) == users
            if not is_whole:
                break
            _delete(batch)
        tally.take(batch)
    if delete and is_whole:
        _prune(estate)
    return tally.result(deleted=delete, is_whole=is_whole)


def _check_samples(runs: Iterable[Run]) -> None:
    """Raises ``ValueError`` for a run whose samples are gone: a plan leaves some, and they say what is needed."""
    for run in runs:
        if not num_parts(run.output, run.name):
            raise ValueError(
                f"{run.output.uri(samples_dir(run.name))} holds no samples, but run {run.name} has a record; "
                f"put them back, or drop the run, and what it made, with --drop-run {run.name}"
            )


def _plans(estate: Estate) -> dict[tuple[str, str], tuple[str, ...]]:
    """What planners write to every run's folder: whoever plans anything adds a file before looking for objects."""
    return {
        (output.uri(""), name): tuple(
            info.path for folder in (samples_dir(name), planning_dir(name)) for info in output.list(folder)
        )
        for output in estate.outputs
        for name in output.folders(RUNS)
        if is_name(name) and not estate.drops(output, name)
    }


def _users(estate: Estate) -> dict[str, tuple[str, ...]]:
    """The files that name the outputs of each store; an output adds its own before it plans anything."""
    return {uri: tuple(info.path for info in store.list(users_dir())) for uri, store in estate.stores.items()}


def _check_users(estate: Estate) -> dict[str, tuple[str, ...]]:
    """``_users``; raises ``ValueError`` unless all outputs that keep objects in the stores are given."""
    given, paths = {output.uri("") for output in estate.outputs}, _users(estate)
    for uri, store in estate.stores.items():
        users = {json.loads(store.read(path))["output"]: path for path in paths[uri]}
        if others := sorted(users.keys() - given):
            raise ValueError(
                f"{uri} also holds the objects of {others[0]}; give that output with another --output, or delete "
                f"{store.uri(users[others[0]])} if it is gone"
            )
        for run in estate.all_runs:
            if run.objects.uri("") == uri and run.store_uri and run.output.uri("") not in users:
                raise ValueError(
                    f"{uri} does not know yet which outputs keep objects there; "
                    "`fastvideo dataset run` on each of them once, which notes it"
                )
    return paths


def _delete(batch: Sequence[Garbage]) -> None:
    for _ in map_ahead(lambda garbage: garbage.store.delete(garbage.info.path), batch):
        pass


def _prune(estate: Estate) -> None:
    """Removes the folders that are empty now, of keys and runs that are gone: nobody can be about to write there."""
    for uri, store in estate.stores.items():
        kept = {(phase, run.keys[phase]) for run in estate.runs if run.objects.uri("") == uri for phase in ALL_PHASES}
        for phase in ALL_PHASES:
            for key in store.folders(phase):
                if (phase, key) not in kept:
                    store.remove_empty_folders(f"{phase}/{key}")
    for output, name in estate.dropped_folders:
        output.remove_empty_folders(f"{RUNS}/{name}")


def _batches(items: Iterable[Garbage], size: int) -> Iterator[list[Garbage]]:
    iterator = iter(items)
    while batch := [*islice(iterator, size)]:
        yield batch


class _Tally:
    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._progress = progress
        self._files: Counter[Waste] = Counter()
        self._bytes: Counter[Waste] = Counter()
        self._examples: dict[Waste, list[str]] = {}

    def take(self, batch: Sequence[Garbage]) -> None:
        for garbage in batch:
            self._files[garbage.kind] += 1
            self._bytes[garbage.kind] += garbage.info.size
            examples = self._examples.setdefault(garbage.kind, [])
            if len(examples) < _EXAMPLES:
                examples.append(garbage.store.uri(garbage.info.path))
        if self._progress is not None:
            self._progress(self._files.total(), self._bytes.total())

    def result(self, *, deleted: bool, is_whole: bool) -> Collected:
        kinds = [kind for kind in Waste if self._files[kind]]
        return Collected(
            files={str(kind): self._files[kind] for kind in kinds},
            bytes={str(kind): self._bytes[kind] for kind in kinds},
            examples={str(kind): self._examples[kind] for kind in kinds},
            deleted=deleted,
            is_whole=is_whole,
        )
