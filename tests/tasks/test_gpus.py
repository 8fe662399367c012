import threading
from contextlib import contextmanager
from functools import partial

import pytest

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.worker.device_lock import hold_devices
from fastvideo.v1.worker.failures import Cause, JobFailed
from tasks import gpus
from tasks.gpus import hold_gpus


class FakeLimit:
    """Stands for Prefect's ``concurrency``: full until the third question."""

    def __init__(self):
        self.questions, self.held = 0, 0

    @contextmanager
    def __call__(self, name, *, occupy, timeout_seconds, **_):
        self.questions += 1
        if self.questions < 3:
            raise TimeoutError
        self.held += occupy
        yield
        self.held -= occupy


@pytest.fixture
def limit(monkeypatch):
    fake = FakeLimit()
    monkeypatch.setattr(gpus, "concurrency", fake)
    monkeypatch.setattr(gpus, "visible_devices", lambda environment: ())
    return fake


def config(**values):
    return RunConfig(prompts="p", output="o", **values)


def test_slots_of_the_limit_are_waited_for_and_given_back(limit):
    with hold_gpus(config(gpu_limit="gpus"), 4, threading.Event()) as devices:
        assert limit.held == 4 and devices.environment == {}
    assert limit.held == 0 and limit.questions == 3


def test_without_a_limit_nobody_is_asked(limit):
    with hold_gpus(config(), 4, threading.Event()):
        assert limit.questions == 0


def test_who_waits_for_a_gpu_of_this_host_takes_no_slot(limit, monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "visible_devices", lambda environment: ("0",))
    monkeypatch.setattr(gpus, "hold_devices", partial(hold_devices, folder=tmp_path))
    asked, stop = config(gpu_limit="gpus"), threading.Event()
    with hold_gpus(asked, 1, stop) as devices:
        assert devices.names == ("0",) and limit.held == 1
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(JobFailed, match="waiting for GPUs of this host"), hold_gpus(asked, 1, stop):
            pass
        assert limit.held == 1 and limit.questions == 3, "those of the first"


@pytest.mark.parametrize(("count", "names"), [("1", ("0",)), ("2", ())])
def test_only_a_job_of_several_nodes_leaves_gpus_to_the_cluster(limit, monkeypatch, tmp_path, count, names):
    monkeypatch.setattr(gpus, "visible_devices", lambda environment: ("0",))
    monkeypatch.setattr(gpus, "hold_devices", partial(hold_devices, folder=tmp_path))
    nodes = {"FASTVIDEO_NNODES": count, "FASTVIDEO_NODE_LAUNCHER": "srun", "FASTVIDEO_RDZV_ENDPOINT": "host:29500"}
    for name, value in nodes.items():
        monkeypatch.setenv(name, value)
    with hold_gpus(config(), 1, threading.Event()) as devices:
        assert devices.names == names


def test_waiting_ends_when_the_run_is_stopped(limit):
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobFailed) as raised, hold_gpus(config(gpu_limit="gpus"), 1, stop):
        pass
    assert raised.value.failure.cause is Cause.PREEMPTED and limit.questions == 0
