"""Waves and shards: the missing work, cut into files that a job can walk."""

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import shard_path, wave_dir
from fastvideo.v1.dataset.ledger import read_ledger
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.samples import SAMPLE_SCHEMA, from_parquet, to_parquet
from fastvideo.v1.dataset.scan import INPUT_COLUMNS, Scan, read_index
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

TARGET_SECONDS = 5400.0  # of one job at one shard: long enough that launching and loading stay under 1%
# Rows of an encode shard: a text, or an image with the canvas that it is fitted to.
INPUT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        *(SAMPLE_SCHEMA.field(name) for name in IMAGE_INPUT),
    ]
)
_UNMEASURED = {Phase.DENOISE: 256, Phase.DECODE: 1024}  # samples, until the ledger tells seconds
_LARGEST = 16_384
_LAYOUT = b"layout"  # in a shard's metadata
_SHARDS_PER_JOB = 2  # at least, where samples are few, so that jobs end together


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One job's work: ``count`` rows at ``path`` in the run's output."""

    run: str
    wave: str
    phase: Phase
    index: int
    path: str
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, a few hundred bytes."""
        return asdict(self) | {"phase": str(self.phase)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Shard":
        """The shard of :meth:`to_dict`."""
        return cls(**{**values, "phase": Phase(values["phase"])})


def write_shards(
    run: Run, scan: Scan, config: RunConfig, wave_number: int, layouts: Mapping[Phase, ParallelLayout] | None = None
) -> list[Shard]:
    """The next wave: shards for the first samples, in data-set order, that miss an input, latents or a video.

    Encode shards come first, then denoise, then decode, all about the same samples. Empty when nothing can be made.
    Their jobs work in ``layouts``, without them in that of the engine.
    """
    layouts = layouts or dict.fromkeys(ALL_PHASES, config.engine.layout)
    size = shard_size(run, scan, config, Phase.DENOISE, layouts[Phase.DENOISE])
    rows = _next_rows(run, scan, config.wave_size * size)
    if not len(rows):
        return []
    wave = f"{wave_number:04d}-{uuid.uuid4().hex[:6]}"
    texts, images = _inputs(run, rows, scan[Phase.ENCODE].missing_ids)
    denoise = rows.filter(pc.is_in(rows["id"], scan[Phase.DENOISE].missing_ids))
    decode = rows.filter(pc.is_in(rows["id"], scan[Phase.DECODE].missing_ids))
    pieces = {
        Phase.ENCODE: [*_cut(texts, config.text_shard_size), *_cut(images, config.image_shard_size)],
        Phase.DENOISE: _cut(denoise, size),
        Phase.DECODE: _cut(decode, shard_size(run, scan, config, Phase.DECODE, layouts[Phase.DECODE])),
    }
    return [
        _write(run, wave, phase, index, piece, layouts[phase])
        for phase in ALL_PHASES
        for index, piece in enumerate(pieces[phase])
    ]


def read_shard(run: Run, path: str) -> pa.Table:
    """The rows of a shard: ``INPUT_SCHEMA`` for encode, else those of ``SAMPLE_SCHEMA`` (see ``to_samples``)."""
    return from_parquet(run.output.read(path))


def layout_of(shard: pa.Table) -> ParallelLayout:
    """The layout of the job that is to walk a shard."""
    return ParallelLayout(**json.loads(shard.schema.metadata[_LAYOUT]))


def delete_wave(run: Run, wave: str) -> None:
    """Removes a wave's shards; nothing is lost with them."""
    for info in run.output.list(wave_dir(run.name, wave)):
        run.output.delete(info.path)


def shard_size(run: Run, scan: Scan, config: RunConfig, phase: Phase, layout: ParallelLayout) -> int:
    """Samples of a shard: the config's number, else one and a half hours of a job, less where samples are few."""
    fixed = {Phase.DENOISE: config.shard_size, Phase.DECODE: config.decode_shard_size}[phase]
    if fixed is not None:
        return fixed
    seconds = pc.approximate_median(read_ledger(run, phase)["seconds"]).as_py()
    largest = TARGET_SECONDS / seconds if seconds else _UNMEASURED[phase]
    largest = min(max(int(largest), 1) * layout.data, _LARGEST)
    shards_per_job = _SHARDS_PER_JOB if config.jobs > 1 else 1
    return max(1, min(largest, math.ceil(scan[phase].missing / (config.jobs * shards_per_job))))


def _next_rows(run: Run, scan: Scan, limit: int) -> pa.Table:
    index = read_index(run)
    missing = {phase: scan[phase].missing_ids for phase in ALL_PHASES}
    masks = [
        pc.is_in(index["id"], missing[Phase.DENOISE]),
        pc.is_in(index["id"], missing[Phase.DECODE]),
        *(pc.is_in(index[name], missing[Phase.ENCODE]) for name in INPUT_COLUMNS),
    ]
    wanted = np.logical_or.reduce([mask.to_numpy() for mask in masks])
    positions = np.flatnonzero(wanted)[:limit]
    return pa.Table.from_batches(_take(run.iter_batches(), positions), SAMPLE_SCHEMA)


def _take(batches: Iterable[pa.RecordBatch], positions: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        if not len(positions) or positions[-1] < start:
            return
        inside = positions[(positions >= start) & (positions < start + len(batch))]
        if len(inside):
            yield batch.take(pa.array(inside - start))
        start += len(batch)


def _inputs(run: Run, rows: pa.Table, missing: pa.Array) -> tuple[pa.Table, pa.Table]:
    """The texts and the images that are to be encoded for the rows, each once."""
    canvas = {name: rows[name].fill_null(getattr(run.sampling, name)) for name in IMAGE_INPUT[1:]}
    prompts = {"id": rows["input_id"], "text": rows["prompt"]}
    negatives = {"id": rows["negative_input_id"], "text": rows["negative_prompt"]}
    images = {"id": rows["image_input_id"], "image": rows["image"], **canvas}
    return _distinct(missing, prompts, negatives), _distinct(missing, images)


def _distinct(missing: pa.Array, *columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The rows of ``INPUT_SCHEMA`` among ``missing``, in order; columns that are not given are null."""
    tables = [pa.table(dict(part)) for part in columns]
    inputs = pa.concat_tables([INPUT_SCHEMA.empty_table(), *tables], promote_options="permissive")
    inputs = inputs.filter(pc.is_in(inputs["id"], missing))
    _, first = np.unique(inputs["id"].to_numpy(), return_index=True)
    return inputs.take(pa.array(np.sort(first)))


def _cut(rows: pa.Table, size: int) -> list[pa.Table]:
    return [rows.slice(start, size) for start in range(0, len(rows), size)]


def _write(run: Run, wave: str, phase: Phase, index: int, rows: pa.Table, layout: ParallelLayout) -> Shard:
    path = shard_path(run.name, wave, phase, index)
    rows = rows.replace_schema_metadata({_LAYOUT: json.dumps(asdict(layout))})
    run.output.create(path, to_parquet(rows))
    return Shard(run=run.name, wave=wave, phase=phase, index=index, path=path, count=len(rows))
