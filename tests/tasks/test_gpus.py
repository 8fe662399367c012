import threading
from contextlib import contextmanager

import pytest

from fastvideo.v1.dataset.config import RunConfig
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


def test_waiting_ends_when_the_run_is_stopped(limit):
    stop = threading.Event()
    stop.set()
    with pytest.raises(JobFailed) as raised, hold_gpus(config(gpu_limit="gpus"), 1, stop):
        pass
    assert raised.value.failure.cause is Cause.PREEMPTED and limit.questions == 0
