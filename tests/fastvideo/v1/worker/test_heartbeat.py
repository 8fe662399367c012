"""A process that does nothing for too long is ended, and one that is only slow is not."""

import time
from threading import Event

import pytest

from fastvideo.v1.worker import heartbeat
from fastvideo.v1.worker.heartbeat import Heartbeat

LEAST = 0.2


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Event:
    event = Event()
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: event.set())
    monkeypatch.setattr(heartbeat.faulthandler, "dump_traceback", lambda file: None)
    return event


def test_too_long_is_twenty_times_the_longest_step(ended: Event) -> None:
    with Heartbeat(LEAST) as heart:
        heart.beat()
        time.sleep(0.05)
        heart.beat()
        began = time.monotonic()
        assert not ended.wait(2 * LEAST) and ended.wait(30)
        assert time.monotonic() - began > 20 * 0.05


def test_the_first_step_may_take_as_long_as_it_will(ended: Event) -> None:
    with Heartbeat(LEAST) as heart:
        heart.beat()
        assert not ended.wait(3 * LEAST)


def test_nothing_is_watched_after_the_end(ended: Event) -> None:
    with Heartbeat(LEAST) as heart:
        for _ in range(2):
            heart.beat()
    assert not ended.wait(3 * LEAST)
