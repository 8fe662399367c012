"""What a run holds, told in few words, and a wave of it made."""

import json

from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import Shard, read_shard


def prompts(count: int) -> list[str]:
    return [json.dumps({"prompt": f"p{number}"}) for number in range(count)]


def ids(run: Run) -> list[str]:
    return [sample.id for sample in run.iter_samples()]


def inputs(run: Run) -> dict[str, str]:
    """Prompt by input id."""
    return {row["input_id"]: row["prompt"] for batch in run.iter_batches() for row in batch.to_pylist()}


def counts(run: Run) -> dict[str, tuple[int, ...]]:
    return {
        str(phase): (part.total, part.done, part.failed, part.blocked, part.missing)
        for phase, part in scan(run).items()
    }


def make_wave(run: Run, shards: list[Shard], make_object) -> None:
    for shard in shards:
        with LedgerWriter(run, shard.phase) as ledger:
            for id in read_shard(run, shard.path)["id"].to_pylist():
                data = make_object(run, shard.phase, id)
                ledger.add(LedgerRow(id=id, bytes=len(data), sha256="x", started=1.0, seconds=2.0, device="cpu"))
