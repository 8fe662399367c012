"""A wave as its runner sees it: the shards that lie in its folder, and which of them wait for which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.progress.scan import INPUT_COLUMNS
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.open_waves import shard_paths
from fastvideo.v1.dataset.waves.shards import layout_of, read_shard
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.phase import Phase


@dataclass(frozen=True, kw_only=True)
class WaveShard:
    """One shard of a wave; ``needs`` names those that make its inputs, ``count`` its rows, ``layout`` is its job's."""

    name: str
    phase: Phase
    path: str
    count: int
    needs: tuple[str, ...]
    layout: ParallelLayout


def read_wave(run: Run, wave: str) -> list[WaveShard]:
    """The shards of a wave by phase and number; none once it is closed."""
    paths = shard_paths(run, wave)
    try:
        tables = {name: read_shard(run, path) for name, path in paths.items()}
    except FileNotFoundError:  # it is being closed
        return []
    by_phase = {phase: {name: table for name, table in tables.items() if name.startswith(phase)} for phase in Phase}
    inputs = {name: _ids(table, "id") for name, table in by_phase[Phase.ENCODE].items()}
    latents = {name: _ids(table, "id") for name, table in by_phase[Phase.DENOISE].items()}
    needs = _needs({name: _ids(table, *INPUT_COLUMNS) for name, table in by_phase[Phase.DENOISE].items()}, inputs)
    needs |= _needs({name: _ids(table, "id") for name, table in by_phase[Phase.DECODE].items()}, latents)
    return [
        WaveShard(
            name=name,
            phase=phase,
            path=paths[name],
            count=len(table),
            needs=needs.get(name, ()),
            layout=layout_of(table),
        )
        for phase, shards in by_phase.items()
        for name, table in shards.items()
    ]


def _ids(table: pa.Table, *columns: str) -> pa.ChunkedArray:
    chunks = [chunk for column in columns for chunk in table[column].chunks]
    return pa.chunked_array(chunks, pa.string()).drop_null()


def _needs(
    consumers: Mapping[str, pa.ChunkedArray], producers: Mapping[str, pa.ChunkedArray]
) -> dict[str, tuple[str, ...]]:
    """For each consumer the producers that share an id with it."""
    made, asked = _concatenate(list(producers.values())), _concatenate(list(consumers.values()))
    positions = pc.index_in(asked, value_set=made.combine_chunks())
    found = positions.is_valid().to_numpy()
    producer = _owners(list(producers.values()))[positions.drop_null().to_numpy()]
    consumer = _owners(list(consumers.values()))[found]
    pairs = np.unique(np.stack([consumer, producer]), axis=1).T
    producer_names, needs = list(producers), {name: list[str]() for name in consumers}
    names = list(consumers)
    for consumer_index, producer_index in pairs:
        needs[names[consumer_index]].append(producer_names[producer_index])
    return {name: tuple(those) for name, those in needs.items()}


def _concatenate(arrays: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for array in arrays for chunk in array.chunks], pa.string())


def _owners(arrays: Sequence[pa.ChunkedArray]) -> np.ndarray:
    return np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
