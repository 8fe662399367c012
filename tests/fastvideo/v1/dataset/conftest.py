"""A config on the embedded model, and stores on S3."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.state_file import pack_state
from fastvideo.v1.dataset.store import Store
from fastvideo.v1.pipelines.phase import Phase
from tests.s3_servers import BUCKET, S3Server, make_bucket, use_server


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A config whose prompts are the given lines and whose output is a folder of the test."""

    def make(*lines: str, **values) -> RunConfig:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(f"{line}\n" for line in lines))
        return parse_config({"prompts": str(prompts), "output": str(tmp_path / "output"), **values})

    return make


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with an empty-enough bucket, named by the environment as users name it."""
    server: S3Server = request.getfixturevalue(request.param)
    use_server(monkeypatch, server)
    make_bucket(server)
    return server


@pytest.fixture
def s3_store(s3: S3Server, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}-{time.time_ns()}", patience=5)


@pytest.fixture
def make_object() -> Callable[[Run, Phase, str], bytes]:
    """Commits a real object of a phase as a job would, without a ledger row; returns its bytes."""

    def make(run: Run, phase: Phase, id: str) -> bytes:
        data = _video(run, id) if phase is Phase.DECODE else pack_state({"x": torch.ones(4)}, {"id": id})
        assert run.objects.create(object_path(phase, run.keys[phase], id), data)
        return data

    return make


def _video(run: Run, id: str) -> bytes:
    import numpy as np

    from fastvideo.v1.dataset.video import VideoWriter

    frames = np.full((3, 64, 64, 3), int(id[:2], 16), np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with VideoWriter(file.name, 64, 64, run.sampling.fps, run.video) as writer:
            writer.write(frames)
        return Path(file.name).read_bytes()
