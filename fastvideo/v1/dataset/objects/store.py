"""Objects under one URI: created once, whole, by whoever comes first."""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, TypeVar

from fsspec.core import url_to_fs

from fastvideo.v1.dataset.layout import DAMAGED, PROBES
from fastvideo.v1.dataset.objects import local_files
from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured, StoreUnavailable, exists_already, translate
from fastvideo.v1.shown_text import without_secrets

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
_SINGLE_PUT = 5 * 2**30  # a multi-part upload is not exclusive on every server; one PUT is
_LISTING_THREADS = 16
_READING_THREADS = _DELETING_THREADS = 8
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "skip_instance_cache": True,
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 60,
        "retries": {"max_attempts": 0},
        "max_pool_connections": 32,
    },
}


class ObjectInfo(NamedTuple):
    """``path`` is relative to the store; ``modified`` counts seconds since 1970."""

    path: str
    size: int
    modified: float


Listing = list[ObjectInfo]  # named here: inside the class, `list` is the method
Names = list[str]
Entries = list[dict[str, Any]]


class Store:
    """Objects by relative path under a directory or any fsspec URI; safe to use from several threads.

    An operation waits out an unreachable store for ``patience`` seconds and then raises ``StoreUnavailable``;
    wrong credentials or a missing bucket raise ``StoreMisconfigured`` at once.
    """

    def __init__(self, uri: str, patience: float = PATIENCE_SECONDS) -> None:
        if without_secrets(uri) != uri:
            raise StoreMisconfigured("a store's URI must not hold credentials; give them in the environment (AWS_...)")
        is_s3 = uri.startswith(("s3://", "s3a://"))
        self._fs, self._root = url_to_fs(uri, **(_S3_OPTIONS if is_s3 else {}))
        self._root = self._root.rstrip("/")
        self._is_local = "file" in _protocols(self._fs)
        self._errors: tuple[type[Exception], ...] = (OSError,)
        self._patience = patience
        if is_s3:
            from botocore.exceptions import BotoCoreError, ClientError

            self._fs.retries = 1  # one place retries: _call
            self._errors = (OSError, BotoCoreError, ClientError)

    def __repr__(self) -> str:
        return f"Store({self.uri('')!r})"

    def uri(self, path: str) -> str:
        """The full URI of ``path``; a plain path on local disk."""
        full = self._full(path)
        return full if self._is_local else self._fs.unstrip_protocol(full)

    # -- writing ---------------------------------------------------------------------------------------------------

    def create(self, path: str, data: bytes) -> bool:
        """Writes a new object whole; False, and nothing written, if it exists."""
        full = self._full(path)
        if self._is_local:
            return self._create(path, partial(local_files.create, full, lambda file: file.write(data)))
        size = {"chunksize": _SINGLE_PUT} if self._is_s3 else {}
        return self._create(path, partial(self._fs.pipe_file, full, data, mode="create", **size))

    def create_from_file(self, path: str, local_path: str) -> bool:
        """Like :meth:`create`, from a finished local file."""
        full = self._full(path)
        if self._is_local:
            return self._create(path, partial(local_files.create, full, partial(_copy, local_path)))
        if self._is_s3:
            return self._create(
                path, partial(self._fs.put_file, local_path, full, mode="create", chunksize=_SINGLE_PUT)
            )
        with open(local_path, "rb") as file:
            return self.create(path, file.read())

    def overwrite(self, path: str, data: bytes) -> None:
        """Writes an object whole, over whatever was there."""
        full = self._full(path)
        if self._is_local:
            self._call(partial(local_files.replace, full, lambda file: file.write(data)), path)
        else:
            self._call(partial(self._fs.pipe_file, full, data), path)

    def delete(self, path: str) -> None:
        """Removes an object; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._call(partial(self._fs.rm_file, self._full(path)), path)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Removes objects, some at a time in parallel; those that are gone already are no error."""
        with ThreadPoolExecutor(_DELETING_THREADS) as pool:
            for _ in pool.map(self.delete, paths):
                pass

    def remove_empty_folders(self, prefix: str) -> None:
        """Removes the folder ``prefix`` and those below it as far as they are empty; on S3 there are none.

        For folders into which nobody writes any more.
        """
        if self._is_local:
            for folder, _, _ in os.walk(self._full(prefix), topdown=False):
                with contextlib.suppress(OSError):  # it is not empty
                    os.rmdir(folder)

    def set_aside(self, path: str) -> str:
        """Moves a damaged object out of the way, so that it is made again; returns its new path.

        One that is gone, since another has put it aside, is no error.
        """
        aside = f"{DAMAGED}/{path}.{uuid.uuid4().hex[:8]}"
        if self._is_local:
            local_files.make_folder(os.path.dirname(self._full(aside)))
        with contextlib.suppress(FileNotFoundError):
            self._call(partial(self._fs.mv, self._full(path), self._full(aside)), path)
        return aside

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """The whole object; raises ``FileNotFoundError``."""
        return self._call(partial(self._fs.cat_file, self._full(path)), path)

    def read_many(self, paths: Iterable[str]) -> Iterator[bytes]:
        """The objects in order, some fetched ahead in parallel."""
        with ThreadPoolExecutor(_READING_THREADS) as pool:
            for group in _groups(paths, 4 * _READING_THREADS):
                yield from pool.map(self.read, group)

    def exists(self, path: str) -> bool:
        """Whether the object is there: one request, and on S3 another if it is not."""
        try:
            self._call(partial(self._fs.info, self._full(path)), path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Listing:
        """All objects in the folder ``prefix`` and below, by path."""
        if self._is_local:
            found = [info for folder in self._folders_below(prefix) for info in self._scan_local(folder)]
        else:
            entries = self._call(partial(self._find, self._full(prefix)), prefix)
            found = [self._info(entry) for entry in entries]
        return sorted(found)

    def list_sharded(self, prefix: str) -> Iterator[Listing]:
        """The objects of each folder right under ``prefix`` (the layout's ``<aa>``), folders listed in parallel."""
        paths = [self._full(f"{prefix}/{name}") for name in self.folders(prefix)]
        list_one = self._scan_local if self._is_local else self._list_remote
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            yield from pool.map(list_one, paths)

    def list_temporary(self) -> Listing:
        """Files of writers that are at work or were killed: none but on local disk."""
        folders = self._folders_below("") if self._is_local else []
        return sorted(info for folder in folders for info in self._scan_local(folder, unfinished=True))

    def folders(self, prefix: str) -> Names:
        """The names of the folders right under ``prefix``, sorted: one request."""
        full = self._full(prefix)
        if self._is_local:
            return sorted(self._call(partial(local_files.subfolders, full), prefix))
        try:
            entries = self._call(partial(self._fs.ls, full, detail=True), prefix)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "directory")

    # -- checks ----------------------------------------------------------------------------------------------------

    def check_exclusive_create(self) -> None:
        """Raises unless the store is reachable, writable and lets exactly one of two creates win.

        Local disk needs no probe: a hard link never overwrites.
        """
        if self._is_local:
            self._call(partial(local_files.make_folder, self._root), "")
            return
        probe = f"{PROBES}/{uuid.uuid4().hex}"
        try:
            self.create(probe, b"first")  # if its answer is lost, it is asked for again, and there already
            outcome = (self.create(probe, b"second"), self.read(probe))
        finally:
            self.delete(probe)
        if outcome != (False, b"first"):
            raise StoreMisconfigured(
                f"{self.uri('')}: this store overwrites objects that exist (it ignores `If-None-Match: *`); "
                "use local disk or an S3 server with conditional writes"
            )

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _is_s3(self) -> bool:
        return "s3" in _protocols(self._fs)

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"path {path!r} leads out of {self._root}; paths of a store lie within it")
        return f"{self._root}/{path}" if path else self._root

    def _create(self, path: str, operation: Callable[[], object]) -> bool:
        try:
            self._call(operation, path)
        except FileExistsError:
            return False
        return True

    def _call(self, operation: Callable[[], T], path: str) -> T:
        deadline = time.monotonic() + self._patience
        delay = 0.2
        while True:
            try:
                return operation()
            except self._errors as error:
                if exists_already(error):
                    raise FileExistsError(path) from None
                translated = translate(error, self.uri(path))
                if not isinstance(translated, StoreUnavailable) or time.monotonic() + delay > deadline:
                    raise translated from error
            time.sleep(delay)
            delay = min(2 * delay, 5.0)

    def _folders_below(self, prefix: str) -> Names:
        return self._call(partial(local_files.folders_below, self._full(prefix)), prefix)

    def _scan_local(self, folder: str, unfinished: bool = False) -> Listing:
        relative = os.path.relpath(folder, self._root)
        start = "" if relative == os.curdir else f"{relative}/"
        files = self._call(partial(local_files.scan_folder, folder, unfinished=unfinished), start.rstrip("/"))
        return [ObjectInfo(f"{start}{name}", size, time) for name, size, time in files]

    def _list_remote(self, folder: str) -> Listing:
        return [self._info(entry) for entry in self._call(partial(self._find, folder), folder)]

    def _find(self, full: str) -> Entries:
        found = self._fs.find(full, detail=True).values()
        return [entry for entry in found if entry["type"] == "file" and entry["name"] != full]

    def _info(self, entry: dict[str, Any]) -> ObjectInfo:
        modified = entry.get("LastModified") or entry.get("created") or entry.get("mtime") or 0.0
        seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
        return ObjectInfo(entry["name"][len(self._root) + 1 :], entry["size"], seconds)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := [*islice(iterator, size)]:
        yield group


def _copy(local_path: str, target: BinaryIO) -> None:
    with open(local_path, "rb") as source:
        shutil.copyfileobj(source, target, 2**20)
