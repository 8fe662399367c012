"""How a job ended when it did not end well, and whose account it is on."""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fastvideo.v1.shown_text import shown

EXIT_PREEMPTED = 75
"""The exit code of a rank that was :class:`Preempted`, and of its job: ``EX_TEMPFAIL``, try again."""

_DETAIL_LINES = 20


class Cause(StrEnum):
    """Each cause has its own retry rule (tasks/retries.py)."""

    BAD_INPUT = "bad input"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTED = "preempted"
    OUT_OF_TIME = "out of time"
    INFRASTRUCTURE = "infrastructure"


class Preempted(Exception):
    """Raised by a job that was asked to leave its machine and has saved what it could."""


class RanksOutOfStep(RuntimeError):
    """One rank has left a call in which others of its sample still wait for it; no rank can go on from there."""


@dataclass(frozen=True)
class JobFailure:
    """``message`` is one line for a person; ``details`` the end of the traceback, or of the output."""

    cause: Cause
    message: str
    details: str = ""


class JobFailed(Exception):
    """A job ended without finishing its work; ``is_final`` once nobody will try again."""

    def __init__(self, failure: JobFailure) -> None:
        super().__init__(f"{failure.cause}: {failure.message}")
        self.failure = failure
        self.is_final = False


_BY_EXCEPTION = {
    "ValueError": Cause.BAD_INPUT,
    "StoreMisconfigured": Cause.BAD_INPUT,
    "MemoryError": Cause.OUT_OF_MEMORY,
    "OutOfMemoryError": Cause.OUT_OF_MEMORY,
    "Preempted": Cause.PREEMPTED,
    "SignalException": Cause.PREEMPTED,  # torchrun itself was asked to end
}
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def classify(error_file: Path, returncode: int, tail: Sequence[str] = ()) -> JobFailure:
    """Reads the failure out of ``TORCHELASTIC_ERROR_FILE``.

    A process that is killed from outside writes none: that, and whatever we do not know, is infrastructure. A job that
    was asked to leave on another node says so by its exit code alone.
    ``tail`` holds the last lines of output, for want of a traceback.
    """
    error = _read_error(error_file)
    if error is None and returncode == EXIT_PREEMPTED:
        return JobFailure(Cause.PREEMPTED, "the job was asked to leave", "\n".join(tail[-_DETAIL_LINES:]))
    if error is None:
        details = "\n".join(tail[-_DETAIL_LINES:])
        message = f"{_ending(returncode)} and left no error file"
        said = f"; it last said: {_first_line(tail[-1])}" if tail else ""
        return JobFailure(Cause.INFRASTRUCTURE, message + said, details)
    message, traceback = map(shown, error)
    return JobFailure(_cause(message), _first_line(message), "\n".join(traceback.splitlines()[-_DETAIL_LINES:]))


def _read_error(error_file: Path) -> tuple[str, str] | None:
    try:
        message = json.loads(error_file.read_text())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(message, str):
        return message, ""
    return message["message"], message.get("extraInfo", {}).get("py_callstack", "")


def _cause(message: str) -> Cause:
    name = message.partition(":")[0].strip().rpartition(".")[2]
    if name in _BY_EXCEPTION:
        return _BY_EXCEPTION[name]
    return Cause.OUT_OF_MEMORY if any(words in message for words in _MEMORY_WORDS) else Cause.INFRASTRUCTURE


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:500]


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the job was ended by {signal.Signals(-returncode).name}"
    return f"the job ended with exit code {returncode} (a process killed from outside?)"
