"""Waves and shards: the missing work, cut into files that a job can walk."""

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import shard_path
from fastvideo.v1.dataset.progress.scan import INPUT_COLUMNS, Scan
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, from_parquet, to_parquet
from fastvideo.v1.dataset.waves.backlog import SAMPLE_PHASES, Backlog, read_backlog
from fastvideo.v1.dataset.waves.open_waves import NOTHING_HELD, Held
from fastvideo.v1.distributed.choice import START_SECONDS, LayoutChoice
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

logger = init_logger(__name__)

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
NOTHING_KNOWN: Mapping[Phase, float] = MappingProxyType({})
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


class Piece(NamedTuple):
    """A shard yet to be written: how many samples, and the layout of its job; why, where it is not that of others."""

    num_samples: int
    layout: ParallelLayout
    reason: str | None = None


def write_waves(
    run: Run,
    scan: Scan,
    config: RunConfig,
    first: int,
    count: int,
    choices: Mapping[Phase, LayoutChoice] | None = None,
    held: Held = NOTHING_HELD,
    expected: Mapping[Phase, float] = NOTHING_KNOWN,
) -> Iterator[list[Shard]]:
    """The next ``count`` waves, numbered from ``first``: shards for the samples that miss an input, latents or a video.

    Samples come in data-set order, each in one wave; a wave's encode shards come first, then denoise, then decode, all
    about the same samples. An input that samples of several waves lack lies in each, so that any wave can run alone.
    Fewer, or none, when no more can be made that is not ``held``. Jobs work in the layouts of ``choices``, without them
    in that of the engine. ``expected`` are a job's seconds for a sample, for want of measured ones.
    """
    choices = choices or dict.fromkeys(ALL_PHASES, LayoutChoice(layout=config.engine.layout, reason="the engine's"))
    backlog = read_backlog(run, scan, held)
    share = math.ceil((len(backlog) + len(held.samples)) / config.pools.num_waves)  # each at work gets some of a few
    rows, batches = SAMPLE_SCHEMA.empty_table(), backlog.rows(run)
    start = 0
    for number in range(first, first + count):
        left = backlog.since(start)
        if not len(left.positions):
            return
        sizes = {
            phase: shard_size(scan, config, phase, choices[phase].layout, left.count(phase), expected.get(phase))
            for phase in SAMPLE_PHASES
        }
        wanted = min(config.wave_size * sizes[Phase.DENOISE], max(sizes[Phase.DENOISE], share))
        while len(rows) < wanted and (batch := next(batches, None)) is not None:
            rows = pa.concat_tables([rows, pa.Table.from_batches([batch])])
        yield _write_wave(run, config, number, rows[:wanted], left, sizes, choices)
        rows, start = rows[wanted:], start + wanted


def write_shards(
    run: Run,
    scan: Scan,
    config: RunConfig,
    wave_number: int,
    choices: Mapping[Phase, LayoutChoice] | None = None,
    held: Held = NOTHING_HELD,
) -> list[Shard]:
    """The next wave alone; empty when nothing can be made. See :func:`write_waves`."""
    return next(write_waves(run, scan, config, wave_number, 1, choices, held), [])


def cut_denoise(count: int, size: int, choice: LayoutChoice) -> list[Piece]:
    """Shards of up to ``size`` samples, ``count`` in all.

    Samples that would leave groups of data idle are spread over their GPUs, in a shard of their own, where that ends
    sooner though one more job has to start.
    """
    pieces = []
    for start in range(0, count, size):
        length = min(size, count - start)
        rest = length % choice.layout.data
        tail = choice.tails.get(rest)
        if tail is None or (rest < length and tail.saved < START_SECONDS):
            pieces.append(Piece(length, choice.layout))
            continue
        if rest < length:
            pieces.append(Piece(length - rest, choice.layout))
        pieces.append(Piece(rest, tail.layout, tail.reason))
    return pieces


def read_shard(run: Run, path: str) -> pa.Table:
    """The rows of a shard: ``INPUT_SCHEMA`` for encode, else those of ``SAMPLE_SCHEMA`` (see ``to_samples``)."""
    return from_parquet(run.output.read(path))


def layout_of(shard: pa.Table) -> ParallelLayout:
    """The layout of the job that is to walk a shard."""
    return ParallelLayout(**json.loads(shard.schema.metadata[_LAYOUT]))


def shard_size(
    scan: Scan, config: RunConfig, phase: Phase, layout: ParallelLayout, missing: int, expected: float | None = None
) -> int:
    """Samples of a shard where ``missing`` are left to be cut.

    The config's number, else one and a half hours of a job by the seconds that the ledger tells, less where samples are
    few. As many for each group of data, unless there are fewer samples than groups. Until the ledger tells any, no more
    than the ``expected`` seconds of a sample allow.
    """
    fixed = {Phase.DENOISE: config.shard_size, Phase.DECODE: config.decode_shard_size}[phase]
    if fixed is not None:
        return fixed
    if seconds := scan[phase].seconds:
        largest = TARGET_SECONDS / seconds
    else:
        largest = min(_UNMEASURED[phase], TARGET_SECONDS / expected) if expected else _UNMEASURED[phase]
    largest = min(max(int(largest), 1) * layout.data, _LARGEST)
    jobs = config.jobs * config.pools.num_waves
    if missing <= jobs * layout.data:
        return max(1, math.ceil(missing / jobs))
    shards_per_job = _SHARDS_PER_JOB if jobs > 1 else 1
    rounds = math.ceil(min(largest, missing / (jobs * shards_per_job)) / layout.data)
    return rounds * layout.data


def _write_wave(
    run: Run,
    config: RunConfig,
    number: int,
    rows: pa.Table,
    backlog: Backlog,
    sizes: Mapping[Phase, int],
    choices: Mapping[Phase, LayoutChoice],
) -> list[Shard]:
    """The shards of ``rows``, with which ``backlog`` begins."""
    wave = f"{number:04d}-{uuid.uuid4().hex[:6]}"
    lacking = {name: rows.filter(pa.array(lack[: len(rows)])) for name, lack in backlog.lacks.items()}
    texts, images = _inputs(run, lacking)
    alike = {
        Phase.ENCODE: [*_cut(texts, config.text_shard_size), *_cut(images, config.image_shard_size)],
        Phase.DECODE: _cut(lacking[Phase.DECODE], sizes[Phase.DECODE]),
    }
    pieces = {phase: [(rows, choices[phase].layout) for rows in tables] for phase, tables in alike.items()}
    denoise = lacking[Phase.DENOISE]
    cut = cut_denoise(len(denoise), sizes[Phase.DENOISE], choices[Phase.DENOISE])
    pieces[Phase.DENOISE] = list(_take_pieces(denoise, cut))
    return [
        _write(run, wave, phase, index, rows, layout)
        for phase in ALL_PHASES
        for index, (rows, layout) in enumerate(pieces[phase])
    ]


def _inputs(run: Run, lacking: Mapping[str, pa.Table]) -> tuple[pa.Table, pa.Table]:
    """The texts and the images that are to be encoded, each once, of the rows that lack each of ``INPUT_COLUMNS``."""
    prompts, negatives, images = (lacking[name] for name in INPUT_COLUMNS)
    canvas = {name: images[name].fill_null(getattr(run.sampling, name)) for name in IMAGE_INPUT[1:]}
    texts = (
        {"id": prompts["input_id"], "text": prompts["prompt"]},
        {"id": negatives["negative_input_id"], "text": negatives["negative_prompt"]},
    )
    return _distinct(*texts), _distinct({"id": images["image_input_id"], "image": images["image"], **canvas})


def _distinct(*columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The rows of ``INPUT_SCHEMA``, each id once, in order; columns that are not given are null."""
    tables = [pa.table(dict(part)) for part in columns]
    inputs = pa.concat_tables([INPUT_SCHEMA.empty_table(), *tables], promote_options="permissive")
    _, first = np.unique(inputs["id"].to_numpy(), return_index=True)
    return inputs.take(pa.array(np.sort(first)))


def _cut(rows: pa.Table, size: int) -> list[pa.Table]:
    return [rows.slice(start, size) for start in range(0, len(rows), size)]


def _take_pieces(rows: pa.Table, pieces: Iterable[Piece]) -> Iterator[tuple[pa.Table, ParallelLayout]]:
    start = 0
    for piece in pieces:
        if piece.reason is not None:
            logger.info("%d samples are spread on %s: %s", piece.num_samples, piece.layout.brief, piece.reason)
        yield rows.slice(start, piece.num_samples), piece.layout
        start += piece.num_samples


def _write(run: Run, wave: str, phase: Phase, index: int, rows: pa.Table, layout: ParallelLayout) -> Shard:
    path = shard_path(run.name, wave, phase, index)
    rows = rows.replace_schema_metadata({_LAYOUT: json.dumps(asdict(layout))})
    run.output.create(path, to_parquet(rows))
    return Shard(run=run.name, wave=wave, phase=phase, index=index, path=path, count=len(rows))
