"""Ends a process that hangs: in a driver or a file system that never answers, where no other rank waits for it."""

import faulthandler
import os
import sys
import time
import traceback
from threading import Event, Thread, main_thread
from types import TracebackType

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

_TIMES_LONGEST = 20.0


class Heartbeat:
    """While it is entered, the process ends with exit code 1 once no :meth:`beat` has come for too long.

    Too long is 20 times the longest wait between two beats so far, and at least ``least`` seconds; before there have
    been two, nothing is. The tracebacks of all threads go to standard error, the main one's to torchrun.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._longest = 0.0
        self._last: float | None = None
        self._left = Event()

    def beat(self) -> None:
        """Something was done."""
        now = time.monotonic()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now

    def __enter__(self) -> "Heartbeat":
        Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(self._least / 10):
            limit = max(self._least, _TIMES_LONGEST * self._longest)
            if self._last is not None and self._longest and time.monotonic() - self._last > limit:
                _end(f"nothing was done for {limit:.0f} s, and the longest step took {self._longest:.1f} s")


def _end(message: str) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2)
    stack = traceback.format_stack(sys._current_frames()[main_thread().ident or 0])
    try:
        raise TimeoutError(message + "\n" + "".join(stack))
    except TimeoutError as error:
        get_error_handler().record_exception(error)
    os._exit(1)
