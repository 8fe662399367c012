"""Locks of GPUs, between real processes that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastvideo.v1.worker import device_lock
from fastvideo.v1.worker.device_lock import hold_devices, visible_devices
from fastvideo.v1.worker.failures import Cause, JobFailed

ROOT = Path(__file__).parents[4]
HOLDER = """
import subprocess, sys
from pathlib import Path
from fastvideo.v1.worker.device_lock import hold_devices
with hold_devices(("a", "b"), 1, folder=Path(sys.argv[1])) as held:
    child = subprocess.Popen(["sleep", "60"], pass_fds=held.files, stdout=subprocess.DEVNULL)
    print(*held.names, child.pid, flush=True)
    child.wait()
"""


def hold_elsewhere(folder: Path) -> tuple[subprocess.Popen, str, int]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    name, child = process.stdout.readline().split()
    return process, name, int(child)


def test_a_killed_job_frees_its_devices_once_all_of_it_is_gone(tmp_path):
    process, name, child = hold_elsewhere(tmp_path)
    with hold_devices(("a", "b"), 1, folder=tmp_path) as held:
        assert {name, *held.names} == {"a", "b"}
    process.send_signal(signal.SIGKILL)
    process.wait()
    threading.Timer(1.0, os.kill, (child, signal.SIGKILL)).start()
    started = time.monotonic()
    with hold_devices(("a", "b"), 2, folder=tmp_path) as held:
        assert 0.5 < time.monotonic() - started < 10, "what it had started holds the lock as long as it lives"
        assert held.environment == {"CUDA_VISIBLE_DEVICES": "a,b"}


def test_two_in_one_process_never_share(tmp_path):
    with hold_devices(("a", "b"), 1, folder=tmp_path) as first, hold_devices(("a", "b"), 1, folder=tmp_path) as second:
        assert {*first.names, *second.names} == {"a", "b"}


def test_waiting_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    with (
        hold_devices(("a",), 1, folder=tmp_path),
        pytest.raises(JobFailed) as raised,
        hold_devices(("a",), 1, stop, folder=tmp_path),
    ):
        pass
    assert raised.value.failure.cause is Cause.PREEMPTED


def test_more_than_there_are_is_a_bad_input(tmp_path):
    with pytest.raises(JobFailed, match=r"a job of 2 GPUs, but this host has 1: a; set engine.num_gpus=1") as raised:
        hold_devices(("a",), 2, folder=tmp_path).__enter__()
    assert raised.value.failure.cause is Cause.BAD_INPUT


@pytest.mark.parametrize(
    ("variable", "names"), [(None, ("GPU-x", "GPU-y")), ("1", ("GPU-y",)), ("MIG-1, 0", ("MIG-1", "GPU-x")), ("", ())]
)
def test_devices_have_one_name_however_they_are_called(monkeypatch, variable, names):
    monkeypatch.setattr(device_lock, "_uuids", lambda: ["GPU-x", "GPU-y"])
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible_devices(environment) == names
