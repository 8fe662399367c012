"""What runs and published tables need of the stores; an object that none of them needs is nobody's."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.layout import DATA, IMAGES, phase_folder
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.progress.scan import INPUT_COLUMNS
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, from_parquet
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

_PATH_COLUMNS = ("embeddings_path", "latents_path", "video_path", "image_path")
_PATH = r"^(?P<folder>.+)/[0-9a-f]{2}/(?P<id>[0-9a-f]+)(?:\.\w+)?$"
_ATTEMPTS = 3  # a table may be replaced by the next one while it is read
_NEEDED = pa.schema([SAMPLE_SCHEMA.field(name) for name in ("id", *INPUT_COLUMNS, "image")])
PUBLISHED_IDS = pa.schema([("id", pa.string()), ("sha256", pa.string())])


class ObjectFolder(NamedTuple):
    """Objects of one phase and key, or (without a phase) images, in the store at URI ``store``."""

    store: str
    phase: Phase | None
    key: str = ""

    @property
    def path(self) -> str:
        """Relative to the store."""
        return IMAGES if self.phase is None else phase_folder(self.phase, self.key)


def run_folders(run: Run) -> list[ObjectFolder]:
    """Where the objects of a run lie."""
    store = run.objects.uri("")
    return [*(ObjectFolder(store, phase, run.keys[phase]) for phase in ALL_PHASES), ObjectFolder(store, None)]


def needed_ids(runs: Iterable[Run]) -> dict[ObjectFolder, pa.Array]:
    """The ids of the objects that the samples of ``runs`` are made of and from, each once."""
    found: dict[ObjectFolder, list[pa.Array]] = defaultdict(list)
    for run in runs:
        encode, denoise, decode, images = run_folders(run)
        table = pa.Table.from_batches(run.iter_batches(_NEEDED.names), _NEEDED)
        found[encode] += [_distinct(table[name]) for name in INPUT_COLUMNS]
        found[images].append(_distinct(table["image"]))
        for folder in (denoise, decode):
            found[folder].append(_distinct(table["id"]))
    return {folder: pc.unique(pa.concat_arrays(arrays)) for folder, arrays in found.items()}


def _distinct(column: pa.ChunkedArray) -> pa.Array:
    return column.unique().drop_null()


def published_objects(output: Store) -> dict[ObjectFolder, pa.Table]:
    """What the published table of ``output`` names: rows of ``PUBLISHED_IDS``, a checksum with each video that has one.

    Read again should the table be replaced meanwhile; raises ``FileNotFoundError`` if it never stays.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _published_objects(output)
        except FileNotFoundError:
            continue
    return _published_objects(output)


def _published_objects(output: Store) -> dict[ObjectFolder, pa.Table]:
    found: dict[ObjectFolder, list[pa.Table]] = defaultdict(list)
    for info in output.list(DATA):
        if not info.path.endswith(".parquet"):
            continue
        table = from_parquet(output.read(info.path), [*_PATH_COLUMNS, "sha256"])
        for column in _PATH_COLUMNS:
            parts = pc.extract_regex(table[column].combine_chunks(), _PATH)
            folders, ids = pc.struct_field(parts, "folder"), pc.struct_field(parts, "id")
            digests = table["sha256"].combine_chunks() if column == "video_path" else pa.nulls(len(ids), pa.string())
            rows = pa.table([ids, digests], schema=PUBLISHED_IDS)
            for name in pc.unique(folders).drop_null().to_pylist():
                found[_parse_folder(name, output)].append(rows.filter(pc.equal(folders, name)))
    return {folder: pa.concat_tables(tables) for folder, tables in found.items()}


def _parse_folder(path: str, output: Store) -> ObjectFolder:
    """The folder that a published path names, relative to ``output`` or by its full URI."""
    if path == IMAGES or path.endswith(f"/{IMAGES}"):
        return ObjectFolder(path.removesuffix(IMAGES).rstrip("/") or output.uri(""), None)
    start, _, key = path.rpartition("/")
    root, _, phase = start.rpartition("/")
    return ObjectFolder(root or output.uri(""), Phase(phase), key)


class ByPrefix:
    """Rows with a column ``id``, looked up by the first letters of it, as the folders of a store are named."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.sort_by("id").combine_chunks()
        self._ids = np.asarray(self._table["id"].to_numpy(), dtype=bytes)

    def prefixes(self) -> set[str]:
        """The first two letters of all ids."""
        return set(pc.unique(pc.utf8_slice_codeunits(self._table["id"], 0, 2)).to_pylist())

    def rows(self, prefix: str) -> pa.Table:
        """The rows whose ids begin with ``prefix``."""
        start, end = np.searchsorted(self._ids, [prefix.encode(), prefix.encode() + b"\xff"])
        return self._table.slice(start, end - start)
