"""What a run left behind, read from its output."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fastvideo.v1.dataset.layout import ledger_dir, object_id
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.runs.samples import from_parquet
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase


def objects(output: str | Path) -> dict[str, tuple[float, str]]:
    """Time and digest of each finished object of every phase, by path."""
    store = Store(str(output))
    infos = [info for phase in ALL_PHASES for info in store.list(phase) if object_id(phase, info.path)]
    return {info.path: (info.modified, hashlib.sha256(store.read(info.path)).hexdigest()) for info in infos}


def digests(found: dict[str, tuple[float, str]], phase: str) -> dict[str, str]:
    """The digests alone, of one phase, by file name."""
    return {path.rpartition("/")[2]: digest for path, (_, digest) in found.items() if path.startswith(f"{phase}/")}


def count(output: str | Path, phase: str) -> int:
    """How many objects of a phase are there; quick, for watching a local run."""
    return sum(1 for path in Path(output, phase).glob("*/*/*") if object_id(Phase(phase), path.name))


def made_more_than_once(output: str | Path) -> list[tuple[str, str]]:
    """Phase and id of what the ledger says was made by more than one attempt."""
    run = open_run(str(output))
    made: Counter[tuple[str, str]] = Counter()
    for phase in ALL_PHASES:
        for info in run.output.list(ledger_dir(run.name, phase)):
            rows = from_parquet(run.output.read(info.path)).to_pylist()
            made.update((str(phase), row["id"]) for row in rows if row["seconds"] is not None)
    return [key for key, times in made.items() if times > 1]


def wait_until(condition: Callable[[], object], seconds: float = 120, poll: float = 0.005) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(poll)
