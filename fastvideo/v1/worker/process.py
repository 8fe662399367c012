"""Processes that never outlive the one that started them."""

import ctypes
import os
import signal
import sys
import time

import psutil

AGENT_VARIABLE = "FASTVIDEO_AGENT_PID"
"""The process id of the torchrun that starts a rank, set for its ranks."""
JOB_VARIABLE = "FASTVIDEO_JOB_ID"
"""In the environment of every process of one job, however it was started and whoever its parent is by now."""

_PR_SET_PDEATHSIG = 1


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


def kill_job(job_id: str, timeout: float = 5.0) -> None:
    """Kills every process that carries ``job_id``, those in sessions of their own and orphans included.

    Raises ``TimeoutError`` if some are still there after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while alive := job_processes(job_id):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[process.pid for process in alive]} do not end on SIGKILL")
        for process in alive:
            _kill(process)
        psutil.wait_procs(alive, timeout=0.5)


def job_processes(job_id: str) -> list[psutil.Process]:
    """The living processes that carry ``job_id``."""
    return [process for process in psutil.process_iter() if _carries(process, job_id)]


def _carries(process: psutil.Process, job_id: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(JOB_VARIABLE) == job_id
    except (psutil.Error, OSError):
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
