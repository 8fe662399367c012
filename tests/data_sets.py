"""Data sets for tests: a config on the embedded model, and runs whose objects are real and cost nothing."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.state_file import pack_state
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A config whose prompts are the given lines and whose output is a folder of the test."""

    def make(*lines: str, **values) -> RunConfig:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(f"{line}\n" for line in lines))
        return parse_config({"prompts": str(prompts), "output": str(tmp_path / "output"), **values})

    return make


@pytest.fixture
def make_object() -> Callable[[Run, Phase, str], bytes]:
    """Commits a real object of a phase as a job would, without a ledger row; returns its bytes."""

    def make(run: Run, phase: Phase, id: str) -> bytes:
        data = _video(run, id) if phase is Phase.DECODE else pack_state({"x": torch.ones(4)}, {"id": id})
        assert run.objects.create(object_path(phase, run.keys[phase], id), data)
        return data

    return make


@pytest.fixture
def make_whole(make_object: Callable[[Run, Phase, str], bytes]) -> Callable[[RunConfig], Run]:
    """Plans a run and commits all of its objects with a ledger row each, as jobs would, but for what is there."""

    def make(config: RunConfig) -> Run:
        planned = plan_run(config)
        for phase, found in planned.scan.items():
            with LedgerWriter(planned.run, phase) as ledger:
                for id in found.missing_ids.to_pylist():
                    data = make_object(planned.run, phase, id)
                    sha256, now = hashlib.sha256(data).hexdigest(), time.time()
                    row = LedgerRow(id=id, bytes=len(data), sha256=sha256, started=now, seconds=2.0, device="cpu")
                    ledger.add(row)
        return planned.run

    return make


def _video(run: Run, id: str) -> bytes:
    asked = run.sampling
    frames = np.full((asked.num_frames, asked.height, asked.width, 3), int(id[:2], 16), np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with VideoWriter(file.name, asked.width, asked.height, asked.fps, run.video) as writer:
            writer.write(frames)
        return Path(file.name).read_bytes()
