"""The rows of the published table: each sample whose video exists, with all that is known of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.layout import IMAGES, object_path
from fastvideo.v1.dataset.progress.ledger import METRICS_TYPE, read_ledger
from fastvideo.v1.dataset.progress.scan import list_objects
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import OVERRIDE_FIELDS
from fastvideo.v1.dataset.runs.samples import SAMPLE_SCHEMA, read_requests
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

_SAMPLE_COLUMNS = ["id", "prompt", "negative_prompt", "seed", *OVERRIDE_FIELDS]
PUBLISHED_SCHEMA = pa.schema(
    [
        *(SAMPLE_SCHEMA.field(name).with_nullable(True) for name in _SAMPLE_COLUMNS),
        ("fps", pa.int32()),
        ("flow_shift", pa.float64()),
        ("requested", pa.int64()),
        ("image_sha256", pa.string()),
        ("image_path", pa.string()),
        ("video_path", pa.string()),
        ("latents_path", pa.string()),
        ("embeddings_path", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("encode_seconds", pa.float64()),
        ("denoise_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("device", pa.string()),
        *METRICS_TYPE,
    ]
)
_LEDGER_COLUMNS = ["id", "sha256", "seconds", "device", "started", "metrics"]


def published_rows(run: Run) -> Iterator[pa.RecordBatch]:
    """Batches of ``PUBLISHED_SCHEMA`` in data-set order.

    Paths are relative to the output, or full URIs if the objects live in another store; latents and embeddings that
    are gone are null. What no ledger row tells is null too.
    """
    objects = {phase: list_objects(run.objects, phase, run.keys[phase]) for phase in ALL_PHASES}
    ledger = {phase: read_ledger(run, phase, _LEDGER_COLUMNS) for phase in ALL_PHASES}
    requested = read_requests(run.output, run.name)
    videos = objects[Phase.DECODE]["id"].combine_chunks()
    for batch in run.iter_batches():
        rows = batch.filter(pc.is_in(batch["id"], videos))
        if len(rows):
            yield _rows(run, rows, objects, ledger, requested)


def _rows(
    run: Run,
    rows: pa.RecordBatch,
    objects: Mapping[Phase, pa.Table],
    ledger: Mapping[Phase, pa.Table],
    requested: Mapping[str, int],
) -> pa.RecordBatch:
    ids, inputs = rows["id"], rows["input_id"]
    made = {
        Phase.DENOISE: _join(ledger[Phase.DENOISE], ids),
        Phase.DECODE: _join(ledger[Phase.DECODE], ids),
    }
    metrics = made[Phase.DECODE]["metrics"].combine_chunks()
    columns: dict[str, Any] = {name: rows[name] for name in _SAMPLE_COLUMNS}
    columns |= {name: pc.fill_null(rows[name], getattr(run.sampling, name)) for name in OVERRIDE_FIELDS}
    columns |= {
        "fps": pa.repeat(pa.scalar(run.sampling.fps, pa.int32()), len(rows)),
        "flow_shift": pa.repeat(pa.scalar(run.sampling.flow_shift, pa.float64()), len(rows)),
        "image_sha256": rows["image"],
        "image_path": _image_paths(run, rows["image"]),
        "requested": pa.array([requested.get(id, 1) for id in ids.to_pylist()], pa.int64()),
        "video_path": _paths(run, Phase.DECODE, ids, objects),
        "latents_path": _paths(run, Phase.DENOISE, ids, objects),
        "embeddings_path": _paths(run, Phase.ENCODE, inputs, objects),
        "bytes": _join(objects[Phase.DECODE], ids)["bytes"],
        "sha256": made[Phase.DECODE]["sha256"],
        **{f"{phase}_seconds": table["seconds"] for phase, table in made.items()},
        "encode_seconds": _encode_seconds(ledger[Phase.ENCODE], rows),
        "device": made[Phase.DENOISE]["device"],
        **{field.name: pc.struct_field(metrics, field.name) for field in METRICS_TYPE},
    }
    table = pa.table({name: columns[name] for name in PUBLISHED_SCHEMA.names}).cast(PUBLISHED_SCHEMA)
    return table.combine_chunks().to_batches()[0]


def _join(table: pa.Table, ids: pa.Array) -> pa.Table:
    """The table's row for each id, null where it has none."""
    return table.take(pc.index_in(ids, table["id"].combine_chunks()))


def _encode_seconds(ledger: pa.Table, rows: pa.RecordBatch) -> pa.Array:
    """Of the prompt, and of the image where there is one; null where either is not known."""
    prompt, image = (_join(ledger, rows[name])["seconds"].combine_chunks() for name in ("input_id", "image_input_id"))
    return pc.if_else(rows["image_input_id"].is_valid(), pc.add(prompt, image), prompt)


def _image_paths(run: Run, digests: pa.Array) -> pa.Array:
    folder = run.objects.uri(IMAGES) if run.store_uri else IMAGES
    return pc.binary_join_element_wise(f"{folder}/", pc.utf8_slice_codeunits(digests, 0, 2), "/", digests, "")


def _paths(run: Run, phase: Phase, ids: pa.Array, objects: Mapping[Phase, pa.Table]) -> pa.Array:
    folder, _, suffix = object_path(phase, run.keys[phase], "aa0").partition("/aa/aa0")
    start = f"{run.objects.uri(folder) if run.store_uri else folder}/"
    paths = pc.binary_join_element_wise(start, pc.utf8_slice_codeunits(ids, 0, 2), "/", ids, suffix, "")
    exists = pc.is_in(ids, objects[phase]["id"].combine_chunks())
    return pc.if_else(exists, paths, pa.scalar(None, pa.string()))
