"""One temporary Prefect server for all flow tests, and a stage job that commits at once instead of computing."""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.progress.failures import record_failure
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.dataset.waves.shards import read_shard
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.failures import JobFailed, JobFailure


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    os.environ |= {"PREFECT_LOGGING_TO_API_ENABLED": "false", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture(scope="session")
def video_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from fastvideo.v1.dataset.config import VideoConfig

    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with VideoWriter(path, 16, 16, 8, VideoConfig()) as writer:
        writer.write(np.full((5, 16, 16, 3), 128, np.uint8))
    return path.read_bytes()


class FakeJobs:
    """Stands for ``torchrun.launch``: commits each row of the shard, and remembers what was launched."""

    def __init__(self, video: bytes) -> None:
        self.video = video
        self.launched: list[str] = []
        self.models: set[str] = set()
        self.ended: list[str] = []
        self.commits: dict[str, int] = defaultdict(int)
        self.bad_ids: set[str] = set()
        self.failures: dict[str, list[JobFailure]] = defaultdict(list)
        self.seconds = 0.0
        self.before_commit: Callable[[], object] = lambda: None
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    def launch(self, module, arguments, *, nproc, log, on_event, timeout, env, stop, held_files):
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        name, phase = Path(options["--shard"]).stem, Phase(options["--phase"])
        with self._lock:
            self.launched.append(name)
            self.models.add(json.loads(options["--engine"])["model_path"])
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            time.sleep(self.seconds)
            if self.failures[name]:
                raise JobFailed(self.failures[name].pop(0))
            self.before_commit()
            self._commit(open_run(options["--output"], options["--run"]), phase, options["--shard"], on_event)
        finally:
            with self._lock:
                self._running -= 1
                self.ended.append(name)

    def _commit(self, run, phase, path, on_event):
        content = self.video if phase is Phase.DECODE else b"made"
        needs = {Phase.ENCODE: None, Phase.DENOISE: Phase.ENCODE, Phase.DECODE: Phase.DENOISE}[phase]
        with LedgerWriter(run, phase) as ledger:
            for row in read_shard(run, path).to_pylist():
                id = row["id"]
                source = row["input_id"] if phase is Phase.DENOISE else id
                if needs and not run.objects.exists(object_path(needs, run.keys[needs], source)):
                    on_event({"event": "skipped", "id": id, "reason": "its input is missing"})
                elif id in self.bad_ids:
                    record_failure(run, phase, id, "ValueError: bad", "", 3)
                    on_event({"event": "failed", "id": id, "error": "ValueError: bad"})
                elif run.objects.create(object_path(phase, run.keys[phase], id), content):
                    ledger.add(LedgerRow(id=id, bytes=len(content), sha256="0" * 64, started=0.0, seconds=0.1))
                    self.commits[f"{phase}/{id}"] += 1
                    on_event({"event": "committed", "id": id, "bytes": len(content), "seconds": 0.1})
                else:
                    on_event({"event": "skipped", "id": id})
        on_event({"event": "done", "seconds": 0.1})


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, video_bytes: bytes) -> FakeJobs:
    fake = FakeJobs(video_bytes)
    monkeypatch.setattr("tasks.stage.launch", fake.launch)
    monkeypatch.setattr("tasks.retries._FIRST_DELAY", 0.01)
    return fake


@pytest.fixture
def write_prompts(tmp_path: Path):
    def write(count: int) -> str:
        path = tmp_path / "prompts.txt"
        path.write_text("".join(f"a red circle, number {number}\n" for number in range(count)))
        return str(path)

    return write
