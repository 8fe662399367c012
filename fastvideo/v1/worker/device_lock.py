"""Which GPUs of a host a job has to itself: one lock file each, that the kernel opens again when its holders are gone.

A lock is held by an open file, also by the child processes that inherit it: nothing is left to clean up after a kill.
A second file for each is the head of its queue.
"""

import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
SHARED_FOLDER = Path("/tmp/fastvideo-devices")
"""One for all users of the host, whatever their TMPDIR; containers that share its GPUs have to share it, too."""

_POLL_SECONDS = 0.5
_DRIVER_SECONDS = 60.0


@dataclass(frozen=True)
class HeldDevices:
    """``names`` as CUDA takes them; ``files`` are to be passed on to the job, so that it holds them while it lives."""

    names: tuple[str, ...]
    files: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What shows a job these GPUs and no other."""
        return {VISIBLE_VARIABLE: ",".join(self.names)} if self.names else {}


NO_DEVICES = HeldDevices((), ())


def visible_devices(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that this process may use, by UUID where the driver can be asked; none on a host without.

    Raises ``JobFailed`` where there is a driver that does not answer.
    """
    named = environment.get(VISIBLE_VARIABLE)
    if named is None:
        return tuple(_uuids())
    names = [name.strip() for name in named.split(",") if name.strip()]
    uuids = _uuids() if names else []
    return tuple(uuids[int(name)] if name.isdigit() and int(name) < len(uuids) else name for name in names)


def _uuids() -> list[str]:
    """In the driver's order, which CUDA_DEVICE_ORDER=PCI_BUS_ID makes CUDA's, too."""
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_DRIVER_SECONDS)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stdout if isinstance(error, subprocess.CalledProcessError) else ""
        message = f"which GPUs this host has is not known: {error}"
        mend = f"mend the driver, or set engine.device=cpu or an empty {VISIBLE_VARIABLE} to do without"
        raise JobFailed(JobFailure(Cause.INFRASTRUCTURE, f"{message}; {mend}", said)) from error
    return answer.stdout.split()


@contextmanager
def hold_devices(
    devices: Sequence[str], count: int, stop: threading.Event | None = None, folder: Path | None = None
) -> Iterator[HeldDevices]:
    """Waits for ``count`` of ``devices`` and has them for the block.

    What becomes free goes to the head of its queue, so that a job of many GPUs is not passed over for ever; one that
    waits keeps nobody from GPUs that it could not use. Raises ``JobFailed``: for a bad input where there are not that
    many, as preempted once ``stop`` is set.
    """
    if count > len(devices):
        message = f"a job of {count} GPUs, but this host has {len(devices)}: {', '.join(devices)}"
        mend = f"set engine.num_gpus={len(devices)} or less, or widen {VISIBLE_VARIABLE}"
        raise JobFailed(JobFailure(Cause.BAD_INPUT, f"{message}; {mend}"))
    folder, stop = folder or _shared_folder(), stop or threading.Event()
    with ExitStack() as opened:
        files = {name: opened.enter_context(_lock_file(folder, f"{name}.lock")) for name in sorted(devices)}
        with ExitStack() as waiting:
            queues = {name: waiting.enter_context(_lock_file(folder, f"{name}.queue")) for name in files}
            while len(held := _take(files, queues, count)) < count:
                _step_back(files, queues)
                _wait(stop)
            for name in files.keys() - held:  # taken in an earlier look
                _unlock(files[name])
        yield HeldDevices(tuple(sorted(held, key=devices.index)), tuple(files[name] for name in held))


def _take(files: Mapping[str, int], queues: Mapping[str, int], count: int) -> list[str]:
    """The first ``count`` that are free, or were ours, and whose queue nobody else is the head of."""
    return [*islice((name for name in files if _try_lock(queues[name]) and _try_lock(files[name])), count)]


def _step_back(files: Mapping[str, int], queues: Mapping[str, int]) -> None:
    """Keeps the queues that were reached one after the other, in the order that all take: nobody waits in a circle."""
    reached = [*takewhile(lambda name: _try_lock(queues[name]), queues)]
    for name in queues.keys() - reached:
        _unlock(files[name])
        _unlock(queues[name])


def _wait(stop: threading.Event) -> None:
    if stop.wait(_POLL_SECONDS):
        raise JobFailed(JobFailure(Cause.PREEMPTED, "stopped on request while waiting for GPUs of this host"))


@contextmanager
def _lock_file(folder: Path, name: str) -> Iterator[int]:
    path = folder / name.replace("/", "-")
    try:
        file = os.open(path, os.O_RDONLY)  # without O_CREAT, which the kernel may refuse on another user's file
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        with suppress(PermissionError):  # another user was first
            os.fchmod(file, 0o644)  # which a umask may have kept from all others
    try:
        yield file
    finally:
        os.close(file)


def _shared_folder() -> Path:
    if not SHARED_FOLDER.exists():
        SHARED_FOLDER.mkdir(exist_ok=True)
        with suppress(PermissionError):  # another user was first
            SHARED_FOLDER.chmod(0o1777)
    return SHARED_FOLDER


def _try_lock(file: int) -> bool:
    """Whether it is ours now; it may have been before."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)
