"""What a running job tells, carried from the task's thread to whoever shows it: the wave's board, a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(event: str, **values: Any) -> None:
    """Hands an event to every listener around this call; Prefect's threads inherit theirs."""
    listener = _listener.get()
    if listener is not None:
        listener({"event": event, **values})


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Events reported inside reach ``listener`` (from any thread), then those around it."""
    outer = _listener.get()

    def both(event: Event) -> None:
        listener(event)
        if outer is not None:
            outer(event)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)
