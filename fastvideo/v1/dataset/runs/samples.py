"""The samples of a run as Parquet parts: an append-only log in data-set order, without repeated ids."""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from fastvideo.v1.dataset.layout import requests_dir, samples_dir
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.sample import OVERRIDE_FIELDS, Sample

# The input ids name the encode objects that the sample needs; without guidance the negative one is null, and the
# negative prompt empty; the image's is null without an image. `image` is the SHA-256 of a file (see `image_path`),
# `image_source` its path or URI as it was given, null for bytes out of a table.
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_id", pa.string(), nullable=False),
        pa.field("negative_input_id", pa.string()),
        pa.field("image_input_id", pa.string()),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("negative_prompt", pa.string(), nullable=False),
        pa.field("seed", pa.uint32(), nullable=False),
        pa.field("image", pa.string()),
        pa.field("image_source", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("num_frames", pa.int32()),
        pa.field("num_inference_steps", pa.int32()),
        pa.field("guidance_scale", pa.float64()),
    ]
)
REQUESTS_SCHEMA = pa.schema([("id", pa.string()), ("requested", pa.int64())])
_BATCH_ROWS = 16_384


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table of one Parquet file's bytes."""
    return pq.read_table(pa.BufferReader(data), columns=columns)


def part_path(run_name: str, number: int) -> str:
    """The run's ``number``-th part; whoever creates it first has it, so ids never repeat across parts."""
    return f"{samples_dir(run_name)}/part-{number:06d}.parquet"


def num_parts(output: Store, run_name: str) -> int:
    """How many parts the run has; their numbers have no gaps."""
    return len(output.list(samples_dir(run_name)))


def iter_batches(output: Store, run_name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The run's rows in data-set order, some thousands at a time."""
    schema = pa.schema([SAMPLE_SCHEMA.field(name) for name in columns or SAMPLE_SCHEMA.names])
    for info in output.list(samples_dir(run_name)):
        file = pq.ParquetFile(pa.BufferReader(output.read(info.path)))
        for batch in file.iter_batches(_BATCH_ROWS, columns=schema.names):
            yield conform(batch, schema)


def conform(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with the columns of ``schema``, null where they were written before there was such a column."""
    there = set(rows.schema.names)
    columns = [rows[f.name].cast(f.type) if f.name in there else pa.nulls(len(rows), f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_requests(output: Store, run_name: str) -> dict[str, int]:
    """How often each sample was asked for by the last plan, where that is not once."""
    requested: dict[str, int] = {}
    for info in output.list(requests_dir(run_name)):
        table = from_parquet(output.read(info.path))
        requested.update(zip(table["id"].to_pylist(), table["requested"].to_pylist(), strict=True))
    return requested


def to_samples(batch: pa.RecordBatch, requested: dict[str, int]) -> Iterator[Sample]:
    """The samples of a batch with the columns of ``SAMPLE_SCHEMA``."""
    for row in batch.to_pylist():
        yield Sample(
            id=row["id"],
            prompt=row["prompt"],
            negative_prompt=row["negative_prompt"],
            seed=row["seed"],
            image=row["image"],
            overrides={name: row[name] for name in OVERRIDE_FIELDS if row[name] is not None},
            requested=requested.get(row["id"], 1),
        )
