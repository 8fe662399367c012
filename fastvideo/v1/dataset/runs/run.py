"""A run: one frozen way of making videos, and the samples asked of it so far."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self

from fastvideo.v1.dataset.config import VideoConfig
from fastvideo.v1.dataset.layout import RUNS, is_name, run_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.sample import Sample
from fastvideo.v1.dataset.runs.samples import iter_batches, read_requests, to_samples
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Run:
    """What never changes once samples carry its name; how the work is cut and retried is no part of it.

    ``sampling`` is every sample's request but for its own overrides, seed and negative prompt. ``engine`` holds the
    process settings that shape results. ``created`` is UTC, ISO 8601.
    """

    name: str
    created: str
    model_path: str
    pipeline_class: str
    input_fields: tuple[str, ...]
    sampling: SamplingParams
    repeats: int
    video: VideoConfig
    engine: Mapping[str, Any]
    keys: Mapping[Phase, str]
    fingerprints: Mapping[str, str]
    stage_versions: Mapping[Phase, Mapping[str, int]]
    versions: Mapping[str, str]
    store_uri: str | None
    output: Store = field(repr=False, compare=False)

    @cached_property
    def objects(self) -> Store:
        """The store of the object folders: the output itself unless they live elsewhere."""
        return Store(self.store_uri) if self.store_uri else self.output

    def iter_batches(self, columns: list[str] | None = None) -> Iterator[Any]:
        """Arrow record batches of the samples (``SAMPLE_SCHEMA``), in data-set order."""
        return iter_batches(self.output, self.name, columns)

    def iter_samples(self) -> Iterator[Sample]:
        """The samples in data-set order, streamed."""
        requested = read_requests(self.output, self.name)
        for batch in self.iter_batches():
            yield from to_samples(batch, requested)

    def to_json(self) -> bytes:
        """The record as it is stored."""
        values = _stored_values(self)
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes, output: Store) -> Self:
        """The run of a stored record; keys that a newer version added are ignored."""
        values = json.loads(data)
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        return cls(
            **values
            | {
                "sampling": SamplingParams.from_record(values["sampling"]),
                "video": VideoConfig(**values["video"]),
                "input_fields": tuple(values["input_fields"]),
                "keys": {Phase(phase): key for phase, key in values["keys"].items()},
                "stage_versions": {Phase(phase): stages for phase, stages in values["stage_versions"].items()},
                "output": output,
            }
        )


def _stored_values(run: Run) -> dict[str, Any]:
    values = {f.name: getattr(run, f.name) for f in fields(run) if f.name != "output"}
    return values | {"sampling": asdict(run.sampling), "video": asdict(run.video)}


def _read(output: Store, name: str) -> Run:
    run = Run.from_json(output.read(run_path(name)), output)
    if run.name != name:
        raise ValueError(
            f"{output.uri(run_path(name))} says that it is run {run.name!r}; put its own back, or remove it"
        )
    return run


def list_runs(output: Store) -> list[Run]:
    """All runs of an output, oldest first."""
    runs = []
    for name in filter(is_name, output.folders(RUNS)):
        try:
            runs.append(_read(output, name))
        except FileNotFoundError:
            continue  # still being planned
    return sorted(runs, key=lambda run: (run.created, run.name))


def open_run(output: str | Store, name: str | None = None) -> Run:
    """The run ``name`` of an output, the newest by default; raises ``ValueError`` naming those there are."""
    store = Store(output) if isinstance(output, str) else output
    if name is not None:
        try:
            return _read(store, name)
        except FileNotFoundError:
            names = ", ".join(run.name for run in list_runs(store)) or "none"
            raise ValueError(f"run {name!r} is not in {store.uri('')}; there are: {names}") from None
    runs = list_runs(store)
    if not runs:
        raise ValueError(f"{store.uri('')} holds no run yet; make one with `fastvideo dataset run`")
    return runs[-1]
