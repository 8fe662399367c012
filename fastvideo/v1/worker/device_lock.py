"""Which GPUs of a host a job has to itself: one lock file each, that the kernel opens again when its holders are gone.

A lock is held by an open file, also by the child processes that inherit it: nothing is left to clean up after a kill.
"""

import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.5


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
    """The GPUs that this process may use, by UUID where the driver can be asked; none on a host without."""
    uuids = _uuids()
    named = environment.get(VISIBLE_VARIABLE)
    if named is None:
        return tuple(uuids)
    names = [name.strip() for name in named.split(",") if name.strip()]
    return tuple(uuids[int(name)] if name.isdigit() and int(name) < len(uuids) else name for name in names)


def _uuids() -> list[str]:
    """In the driver's order, which CUDA_DEVICE_ORDER=PCI_BUS_ID makes CUDA's, too."""
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    return answer.stdout.split()


@contextmanager
def hold_devices(
    devices: Sequence[str], count: int, stop: threading.Event | None = None, folder: Path | None = None
) -> Iterator[HeldDevices]:
    """Waits for ``count`` of ``devices`` and has them for the block.

    Those who wait take what becomes free in turn, one of them at a time, so that a job of many GPUs is not passed over
    for ever. Raises ``JobFailed``: for a bad input where there are not that many, as preempted once ``stop`` is set.
    """
    if count > len(devices):
        message = f"a job of {count} GPUs, but this host has {len(devices)}: {', '.join(devices)}"
        mend = f"set engine.num_gpus={len(devices)} or less, or widen {VISIBLE_VARIABLE}"
        raise JobFailed(JobFailure(Cause.BAD_INPUT, f"{message}; {mend}"))
    folder = folder or _shared_folder()
    stop = stop or threading.Event()
    with ExitStack() as opened:
        files = {name: opened.enter_context(_opened(folder / f"{name.replace('/', '-')}.lock")) for name in devices}
        held: dict[str, int] = {}
        with _opened(folder / "queue.lock") as queue:
            while not _try_lock(queue):
                _wait(stop)
            while True:
                for name in files.keys() - held.keys():
                    if len(held) < count and _try_lock(files[name]):
                        held[name] = files[name]
                if len(held) == count:
                    break
                _wait(stop)
        yield HeldDevices(tuple(sorted(held, key=devices.index)), tuple(held.values()))


def _wait(stop: threading.Event) -> None:
    if stop.wait(_POLL_SECONDS):
        raise JobFailed(JobFailure(Cause.PREEMPTED, "stopped on request while waiting for GPUs of this host"))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)  # without O_CREAT, which the kernel may refuse on another user's file
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def _shared_folder() -> Path:
    """One for all users of the host; containers that share its GPUs have to share it, too."""
    folder = Path(tempfile.gettempdir(), "fastvideo-devices")
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    return folder


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
