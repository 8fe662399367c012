"""Files that are there whole or not at all, whatever instruction a process dies at."""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

TEMPORARY_PREFIX = ".tmp-"


def create(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Creates ``path`` from what ``write`` puts into the file; raises ``FileExistsError`` if it is there.

    A hard link and not a rename: a rename would overwrite.
    """
    with _temporary(path, write) as temporary:
        os.link(temporary, path)
    _sync_folder(os.path.dirname(path))


def replace(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Creates or replaces ``path``; a reader sees the old file or the new one."""
    with _temporary(path, write) as temporary:
        os.replace(temporary, path)
    _sync_folder(os.path.dirname(path))


def scan_folder(folder: str, *, unfinished: bool = False) -> list[tuple[str, int, float]]:
    """Name, size and modification time of each file in ``folder``: of finished ones, or of the others.

    What goes meanwhile is left out; that a folder cannot be read is never taken for an empty one.
    """
    found = []
    for entry in _entries(folder):
        if entry.name.startswith(TEMPORARY_PREFIX) == unfinished and entry.is_file():
            with suppress(FileNotFoundError):
                state = entry.stat()
                found.append((entry.name, state.st_size, state.st_mtime))
    return found


def subfolders(folder: str) -> list[str]:
    """The names of the folders right in ``folder``."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def folders_below(folder: str) -> list[str]:
    """``folder`` and all folders below it."""

    def fail(error: OSError) -> None:  # os.walk passes over what it is not told to raise
        if not isinstance(error, FileNotFoundError):
            raise error

    return [path for path, _, _ in os.walk(folder, onerror=fail)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except FileNotFoundError:
        return []


@contextmanager
def _temporary(path: str, write: Callable[[BinaryIO], object]) -> Iterator[str]:
    folder = os.path.dirname(path)
    make_folder(folder)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def make_folder(folder: str) -> None:
    """Makes ``folder`` and its parents so that they outlive a power cut."""
    if os.path.isdir(folder):
        return
    # makedirs would say FileExistsError, which here means that an object is there; another thread may just have made it
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    parent = os.path.dirname(folder)
    make_folder(parent)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileNotFoundError:
        if not os.path.isdir(parent):  # it has gone meanwhile
            raise
        # So says /proc of any new folder; of a store it would say that an object is gone.
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), folder) from None
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
