"""`fastvideo bench dataset`, the half without Prefect: a job that only commits, and the meters around a run."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from fastvideo.v1.dataset.config import RunConfig, VideoConfig
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.state_file import pack_state
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.runs.run import Run, open_run
from fastvideo.v1.dataset.waves.shards import read_shard
from fastvideo.v1.pipelines.phase import Phase

REPEATS = 10  # videos of a prompt
_STORE_CALLS = ("create", "overwrite", "delete", "read", "exists", "list", "folders")


def prepare(folder: Path, num_samples: int, num_shards: int) -> RunConfig:
    """Writes prompts and one tiny object of each phase; the config has ``num_shards`` denoise shards.

    As for real models, a decode shard has four times the samples of a denoise shard.
    """
    if num_samples % REPEATS or num_samples < num_shards:
        raise ValueError(f"samples={num_samples} must be a multiple of {REPEATS} and no less than shards={num_shards}")
    prompts = folder / "prompts.txt"
    with prompts.open("w") as file:
        for number in range(num_samples // REPEATS):
            file.write(f"Scene {number}: a paper boat drifts down a quiet street after the rain, filmed at eye level\n")
    state = pack_state({}, {})
    _object_file(folder, Phase.ENCODE).write_bytes(state)
    _object_file(folder, Phase.DENOISE).write_bytes(state)
    with VideoWriter(_object_file(folder, Phase.DECODE), 16, 16, 8, VideoConfig()) as writer:
        writer.write(np.full((2, 16, 16, 3), 128, np.uint8))
    size = -(-num_samples // num_shards)
    output = str(folder / "output")
    return RunConfig(prompts=str(prompts), output=output, repeats=REPEATS, shard_size=size, decode_shard_size=4 * size)


def _object_file(folder: Path, phase: Phase) -> Path:
    return folder / f"{phase}.object"


@dataclass
class Meter:
    """What a life of the run spent: seconds of committing by wall and thread, of each task, and the store's requests.

    ``ends`` has for each shard when it ended and the seconds committed by then; ``lists`` counts a request for each
    1,000 names, as S3 does.
    """

    folder: Path
    stop_after: int | None
    on_stop: Callable[[], None]
    commit_seconds: float = 0.0
    commit_cpu_seconds: float = 0.0
    num_objects: int = 0
    first_shard_at: float | None = None
    ends: list[tuple[float, float]] = field(default_factory=list)
    tasks: dict[str, list[float]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    _runs: dict[str, Run] = field(default_factory=dict)
    _is_committing: bool = False

    def launch(self, module: str, arguments: Sequence[str], *, on_event: Callable[..., None], **_: Any) -> None:
        """Stands for ``torchrun.launch``: commits every row of the shard, in this process.

        Of one shard at a time. The objects' bytes are not forced to the disk, whose own time is no part of the figures.
        """
        began, cpu = time.time(), time.thread_time()
        self.first_shard_at = self.first_shard_at or began
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        self._is_committing = True
        with patch.object(os, "fsync", lambda descriptor: None):
            self._commit(options["--output"], options["--run"], Phase(options["--phase"]), options["--shard"], on_event)
        self._is_committing = False
        self.commit_seconds += time.time() - began
        self.commit_cpu_seconds += time.thread_time() - cpu
        self.ends.append((time.time(), self.commit_seconds))

    def _commit(self, output: str, name: str, phase: Phase, shard: str, on_event: Callable[..., None]) -> None:
        run = self._runs.setdefault(name, open_run(output, name))
        content = _object_file(self.folder, phase).read_bytes()
        ids = read_shard(run, shard)["id"].to_pylist()
        stops = self.stop_after is not None and len(self.ends) >= self.stop_after
        with LedgerWriter(run, phase) as ledger:
            for position, id in enumerate(ids):
                if stops and position > len(ids) // 2:
                    self.on_stop()
                if not run.objects.create(object_path(phase, run.keys[phase], id), content):
                    on_event({"event": "skipped", "id": id})
                    continue
                ledger.add(LedgerRow(id=id, bytes=len(content), sha256="0" * 64, started=time.time(), seconds=0.1))
                on_event({"event": "committed", "id": id, "bytes": len(content), "seconds": 0.1})
                self.num_objects += 1
        on_event({"event": "done", "seconds": 0.1})

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with the seconds of each call noted under ``name``."""

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            try:
                return call(*args, **kwargs)
            finally:
                self.tasks.setdefault(name, []).append(time.time() - began)

        return timed

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the store's requests, but for those of the jobs."""
        with ExitStack() as stack:
            for name in _STORE_CALLS:
                stack.enter_context(patch.object(Store, name, self._counted(name, getattr(Store, name))))
            yield

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            found = call(*args, **kwargs)
            if not self._is_committing:
                self.requests[name] += 1 + (len(found) // 1000 if name == "list" else 0)
            return found

        return counted

    def figures(self, started: float) -> dict[str, Any]:
        """All of it as plain values, and what the process has used; ``started`` is when it began, since 1970."""
        status = Path("/proc/self/status").read_text()
        (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return {
            "started": started,
            "ended": time.time(),
            "first_shard_at": self.first_shard_at,
            "commit_seconds": self.commit_seconds,
            "cpu_seconds": time.process_time() - self.commit_cpu_seconds,
            "peak_mib": int(peak) / 1024,
            "objects": self.num_objects,
            "ends": self.ends,
            "tasks": self.tasks,
            "requests": dict(self.requests),
        }


def by_tenths(lives: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Orchestration milliseconds a shard in each tenth of the shards: a straight line where they are equal."""
    spans = []
    for life in lives:
        before, committed = life["first_shard_at"] or life["ended"], 0.0
        for end, total in life["ends"]:
            spans.append(end - before - (total - committed))
            before, committed = end, total
    parts = np.array_split(np.array(spans), 10)
    return [{"tenth": number + 1, "ms_a_shard": 1e3 * float(part.mean())} for number, part in enumerate(parts)]
