"""The same run on a real S3 server that checks credentials, goes away, and serves two runs at once."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.commands import FastVideo, run_arguments
from tests.end_to_end.outputs import digests, made_more_than_once, objects, wait_until
from tests.s3_servers import BUCKET, S3Server, make_bucket, use_server


@pytest.fixture
def output(request: pytest.FixtureRequest, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket; this process and its commands find the server in the environment."""
    use_server(monkeypatch, seaweed)
    make_bucket(seaweed)
    return f"s3://{BUCKET}/{request.node.name}-{time.time_ns()}"


@pytest.fixture
def on_s3(fastvideo: FastVideo, seaweed: S3Server) -> FastVideo:
    names = {
        "AWS_ENDPOINT_URL": seaweed.endpoint,
        "AWS_ACCESS_KEY_ID": "right-key",
        "AWS_SECRET_ACCESS_KEY": "right-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return FastVideo({**fastvideo.env, **names})


@pytest.fixture
def stopped(seaweed: S3Server) -> Iterator[None]:
    yield
    seaweed.process.send_signal(signal.SIGCONT)


def check_whole(output: str, undisturbed: Path) -> None:
    now, expected = objects(output), objects(undisturbed)
    assert now.keys() == expected.keys()
    for phase in ("encode", "denoise"):
        assert digests(now, phase) == digests(expected, phase)
    assert made_more_than_once(output) == []


@pytest.mark.timeout(900)
def test_two_runs_share_the_work_on_a_server_that_is_gone_for_twenty_seconds(
    on_s3: FastVideo, output: str, undisturbed: Path, seaweed: S3Server, stopped: None
) -> None:
    commands = [on_s3.start(*run_arguments(output)) for _ in range(2)]
    wait_until(lambda: len(digests(objects(output), "denoise")) > 2, poll=0.2)
    seaweed.process.send_signal(signal.SIGSTOP)
    time.sleep(20)
    seaweed.process.send_signal(signal.SIGCONT)
    for ended in [command.finish() for command in commands]:
        assert ended.returncode == 0, ended.stderr
    check_whole(output, undisturbed)
