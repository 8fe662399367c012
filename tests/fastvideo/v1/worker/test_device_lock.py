"""Locks of GPUs, between real processes that are killed."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    started = time.monotonic()
    threading.Timer(1.0, os.kill, (child, signal.SIGKILL)).start()
    with hold_devices(("a", "b"), 2, folder=tmp_path) as held:
        assert 0.5 < time.monotonic() - started < 30, "what it had started holds the lock as long as it lives"
        assert held.environment == {"CUDA_VISIBLE_DEVICES": "a,b"}


def test_two_in_one_process_never_share(tmp_path):
    with hold_devices(("a", "b"), 1, folder=tmp_path) as first, hold_devices(("a", "b"), 1, folder=tmp_path) as second:
        assert {*first.names, *second.names} == {"a", "b"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(device_lock, "_POLL_SECONDS", 0.01)


@pytest.fixture
def patience():
    """Is set before a test would wait for ever."""
    stop = threading.Event()
    timer = threading.Timer(20, stop.set)
    timer.start()
    yield stop
    timer.cancel()


@pytest.mark.parametrize(("waits_for", "others"), [("a", "b"), ("a", "ab"), ("ab", "bc"), ("bc", "ab"), ("abc", "cd")])
def test_who_waits_keeps_nobody_from_what_it_could_not_use(quick, patience, tmp_path, waits_for, others):
    with ThreadPoolExecutor(1) as pool, hold_devices(tuple(waits_for), len(waits_for), folder=tmp_path):
        waiter = pool.submit(hold_devices(tuple(waits_for), 1, folder=tmp_path).__enter__)
        time.sleep(0.1)
        with hold_devices(tuple(others), 1, patience, tmp_path) as held:
            assert not waiter.done() and not {*held.names} & {*waits_for}


def test_a_job_of_many_is_not_passed_over_by_small_ones(quick, patience, tmp_path):
    done = threading.Event()

    def small_jobs():
        while not done.is_set():
            with hold_devices(("a", "b", "c"), 1, patience, tmp_path):
                time.sleep(0.03)

    with ThreadPoolExecutor(4) as pool:
        small = [pool.submit(small_jobs) for _ in range(4)]
        time.sleep(0.1)
        with hold_devices(("a", "b", "c"), 3, patience, tmp_path) as held:
            assert held.names == ("a", "b", "c")
        done.set()
        for job in small:
            job.result()


def test_whoever_wants_what_nobody_shares_a_device_or_waits_in_a_circle(quick, patience, tmp_path):
    owned = {name: threading.Lock() for name in "abcd"}

    def jobs(seed):
        chance = random.Random(seed)
        for _ in range(20):
            devices = chance.sample("abcd", chance.randint(1, 4))
            with hold_devices(devices, chance.randint(1, len(devices)), patience, tmp_path) as held:
                assert all(owned[name].acquire(blocking=False) for name in held.names)
                time.sleep(0.005)
                for name in held.names:
                    owned[name].release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(jobs, range(6)))


def test_other_users_may_wait_whatever_the_umask_of_the_first(tmp_path):
    before = os.umask(0o077)
    try:
        with hold_devices(("a",), 1, folder=tmp_path):
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    finally:
        os.umask(before)


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


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo No devices were found; exit 6", "returned non-zero exit status 6"), ("exec sleep 60", "timed out after")],
)
def test_a_driver_that_does_not_answer_is_not_a_host_without_gpus(monkeypatch, tmp_path, script, message):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(device_lock, "_DRIVER_SECONDS", 0.3)
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == ()
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    for environment in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        with pytest.raises(JobFailed, match=f"which GPUs this host has is not known: .*{message}.*; mend") as raised:
            visible_devices(environment)
        assert raised.value.failure.cause is Cause.INFRASTRUCTURE
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_the_locks_lie_in_one_folder_whatever_TMPDIR_says(monkeypatch, tmp_path):
    assert f"mkdir --mode=1777 {device_lock.SHARED_FOLDER}\n" in (ROOT / "infra" / "Dockerfile").read_text()
    monkeypatch.setattr(device_lock, "SHARED_FOLDER", tmp_path / "shared")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "other"))
    with hold_devices(("a",), 1):
        assert (tmp_path / "shared").stat().st_mode & 0o7777 == 0o1777
        assert (tmp_path / "shared" / "a.lock").exists()
