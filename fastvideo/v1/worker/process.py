"""Processes that never outlive the one that started them."""

import ctypes
import os
import signal
import sys
import time

import psutil

AGENT_VARIABLE = "FASTVIDEO_AGENT_PID"
"""The process id of the torchrun that starts a rank, or of the launcher of an only one; set for them."""
JOB_VARIABLE = "FASTVIDEO_JOB_ID"
"""In the environment of every process of one job, however it was started and whoever its parent is by now."""

_PR_SET_PDEATHSIG = 1
_KILL_SECONDS = 60.0  # the kernel takes its time to give back what a process has pinned, tens of GB


def die_with_parent(parent: int | None = None) -> None:
    """Has the kernel kill this process when the thread that started it ends; returns at once.

    ``parent`` is the process id that the parent must have, by default the one in ``AGENT_VARIABLE``. A parent that is
    gone before the kernel was asked sends no signal: then this process ends here.
    """
    if parent is None:
        parent = int(os.environ.get(AGENT_VARIABLE, os.getppid()))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class StopWatch:
    """Which processes have been stopped (SIGSTOP) for more than ``seconds``, asked about again and again.

    Such a process answers nobody, and its sockets stay open. One that a debugger holds is not meant.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[int, float] = {}

    def is_lost(self, pid: int) -> bool:
        """Whether it was stopped whenever it was asked about in all this time."""
        if not _is_stopped(pid):
            self._since.pop(pid, None)
            return False
        return time.monotonic() - self._since.setdefault(pid, time.monotonic()) > self.seconds


def kill_job(job_id: str, timeout: float = _KILL_SECONDS) -> None:
    """Kills every process of a job, as :func:`kill_marked` does."""
    kill_marked(JOB_VARIABLE, job_id, timeout)


def kill_marked(variable: str, value: str, timeout: float = _KILL_SECONDS) -> None:
    """Kills every process with ``value`` in its environment, those in sessions of their own and orphans included.

    Raises ``TimeoutError`` if some are still there after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while alive := marked_processes(variable, value):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[process.pid for process in alive]} do not end on SIGKILL")
        for process in alive:
            _kill(process)
        psutil.wait_procs(alive, timeout=0.5)


def marked_processes(variable: str, value: str) -> list[psutil.Process]:
    """The living processes with ``value`` in their environment."""
    return [process for process in psutil.process_iter() if _carries(process, variable, value)]


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(variable) == value
    except (psutil.Error, OSError):
        return False


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
