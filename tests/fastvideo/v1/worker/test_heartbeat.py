"""A process that does nothing for too long is ended, and one that is only slow is not."""

from threading import Event

import pytest

from fastvideo.v1.worker import heartbeat
from fastvideo.v1.worker.heartbeat import Heartbeat

LEAST = 0.2  # it is looked at ten times as often


class Clock:
    """One that stands still but for the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Event:
    event = Event()
    monkeypatch.setattr(heartbeat.os, "_exit", lambda code: event.set())
    monkeypatch.setattr(heartbeat.faulthandler, "dump_traceback", lambda file: None)
    return event


@pytest.mark.parametrize("step, limit", [(3.0, 60.0), (LEAST / 100, LEAST)])
def test_too_long_is_twenty_times_the_longest_step_and_the_least(
    clock: Clock, ended: Event, step: float, limit: float
) -> None:
    with Heartbeat(LEAST) as heart:
        heart.beat()
        clock.now += step
        heart.beat()
        clock.now += 0.99 * limit
        assert not ended.wait(2 * LEAST)
        clock.now += 0.02 * limit
        assert ended.wait(30)


def test_the_first_step_may_take_as_long_as_it_will(clock: Clock, ended: Event) -> None:
    with Heartbeat(LEAST) as heart:
        heart.beat()
        clock.now += 10_000
        assert not ended.wait(2 * LEAST)


def test_nothing_is_watched_after_the_end(clock: Clock, ended: Event) -> None:
    with Heartbeat(LEAST) as heart:
        for _ in range(2):
            heart.beat()
            clock.now += LEAST / 100
    clock.now += 10_000
    assert not ended.wait(2 * LEAST)
