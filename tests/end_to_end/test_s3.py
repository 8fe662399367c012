"""Two runs on one output of a real S3 server that goes away in the middle; tests/end_to_end/test_night.py kills one."""

import signal
import time
from pathlib import Path

import pytest

from fastvideo.v1.dataset.objects.store import Store
from tests.end_to_end.all_phases import ForkServer, exit_code
from tests.end_to_end.commands import RUN
from tests.end_to_end.outputs import digests, made_more_than_once, objects, wait_until
from tests.s3_servers import BUCKET, S3Server, make_bucket, use_server


def test_two_runs_share_the_work_on_a_server_that_is_gone_for_twenty_seconds(
    warm: ForkServer, seaweed: S3Server, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = use_server(monkeypatch, seaweed)
    make_bucket(seaweed)
    output = f"s3://{BUCKET}/two-runs-{time.time_ns()}"
    runs = [warm.start(RUN | {"output": output}, env=env) for _ in range(2)]
    wait_until(lambda: len(Store(output).list("denoise")) > 2, poll=0.05)
    seaweed.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(20)
    finally:
        seaweed.process.send_signal(signal.SIGCONT)
    assert [exit_code(run) for run in runs] == [0, 0]
    now, expected = objects(output), objects(undisturbed)
    assert now.keys() == expected.keys()
    for phase in ("encode", "denoise"):
        assert digests(now, phase) == digests(expected, phase)
    assert made_more_than_once(output) == []
