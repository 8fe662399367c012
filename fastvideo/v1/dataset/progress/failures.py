"""Samples that are out of tries: kept apart, so that the run goes on and a retry can take them up again."""

import json
import time

import pyarrow as pa

from fastvideo.v1.dataset.layout import failed_dir, failed_path
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.shown_text import without_secrets


def record_failure(run: Run, phase: Phase, id: str, error: str, traceback: str, attempts: int) -> None:
    """Notes that ``id`` failed on its own account ``attempts`` times; ``run`` passes over it from now on."""
    texts = {"error": without_secrets(error), "traceback": without_secrets(traceback)}
    record = {"id": id, **texts, "attempts": attempts, "time": time.time()}
    run.output.overwrite(failed_path(run.name, phase, id), json.dumps(record, indent=2).encode())


def failed_ids(run: Run, phase: Phase) -> pa.Array:
    """The ids of a phase that are out of tries."""
    names = (info.path.rpartition("/")[2] for info in run.output.list(failed_dir(run.name, phase)))
    return pa.array([name.removesuffix(".json") for name in names], pa.string())


def read_failures(run: Run, phase: Phase, limit: int | None = None) -> list[dict[str, object]]:
    """The records themselves, as :func:`record_failure` was given them."""
    infos = run.output.list(failed_dir(run.name, phase))[:limit]
    return [json.loads(data) for data in run.output.read_many([info.path for info in infos])]


def clear_failures(run: Run) -> int:
    """Gives every failed sample its tries back; returns how many there were."""
    infos = [info for phase in ALL_PHASES for info in run.output.list(failed_dir(run.name, phase))]
    run.output.delete_many(info.path for info in infos)
    return len(infos)
