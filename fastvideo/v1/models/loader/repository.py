"""A model directory in the Hugging Face Diffusers layout: local, on any fsspec store, or in the local hub cache."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
from fsspec.core import url_to_fs

INDEX = "model_index.json"
_PREFIX_BYTES = 8  # of a safetensors file: the length of its header
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class ModelRepository:
    """Read access to one model directory.

    ``model_path`` is a local directory, an fsspec URI or a hub id; a hub id is looked up in the local cache only, never
    fetched. Raises ``ValueError`` when there is no ``model_index.json``.
    """

    def __init__(self, model_path: str) -> None:
        self.root = _resolve(model_path)
        self._fs, self._path = url_to_fs(self.root)
        if not self.exists(INDEX):
            raise ValueError(f"{self.root} has no {INDEX}; a model directory in the Diffusers layout has one")

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    def exists(self, name: str) -> bool:
        return self._fs.exists(f"{self._path}/{name}")

    def files(self, folder: str) -> list[str]:
        """Names of the files directly in ``folder``, sorted; empty if there is no such folder."""
        path = f"{self._path}/{folder}"
        if not self._fs.isdir(path):
            return []
        entries = self._fs.ls(path, detail=True)
        return sorted(Path(entry["name"]).name for entry in entries if entry["type"] != "directory")

    def read_json(self, name: str) -> dict[str, Any]:
        """A parsed JSON file; a missing or broken one raises ``ValueError`` naming it."""
        try:
            text = self._fs.cat_file(f"{self._path}/{name}")
        except FileNotFoundError:
            raise ValueError(f"{self.root}/{name} is missing") from None
        return parse_object(text, f"{self.root}/{name}")

    def read_header(self, name: str) -> dict[str, dict[str, Any]]:
        """Of a safetensors file each tensor's ``dtype``, ``shape`` and ``data_offsets``; no weights are read.

        A broken one raises ``ValueError`` naming it.
        """
        path = f"{self._path}/{name}"
        end = header_end(self._fs, path)
        try:
            header = json.loads(self._fs.cat_file(path, start=_PREFIX_BYTES, end=end))
        except ValueError as error:
            raise ValueError(f"{self.root}/{name} is truncated or damaged: no header: {error}") from None
        return {tensor: told for tensor, told in header.items() if tensor != "__metadata__"}

    @contextmanager
    def local(self, *names: str) -> Iterator[list[Path]]:
        """Local paths of the named files; those of a remote store are fetched into a folder that lives as long."""
        if self.is_local:
            yield [Path(self._path) / name for name in names]
            return
        with TemporaryDirectory(prefix="fastvideo-model-") as folder:
            paths = [Path(folder) / name for name in names]
            for name, path in zip(names, paths, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._path}/{name}", str(path))
            yield paths


def parse_object(text: str | bytes, origin: str) -> dict[str, Any]:
    """The JSON object ``text``; anything else raises ``ValueError`` naming ``origin``."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{origin} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{origin} must be a JSON object, not {str(values)[:40]!r}")
    return values


def header_end(fs: fsspec.AbstractFileSystem, path: str) -> int:
    """Where the header of a safetensors file ends, in bytes; ``ValueError`` for a length that no such file has."""
    length = int.from_bytes(fs.cat_file(path, start=0, end=_PREFIX_BYTES), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(
            f"{path} is truncated or damaged: a header of {length} bytes is no safetensors file's; fetch it again"
        )
    return _PREFIX_BYTES + length


def _resolve(model_path: str) -> str:
    if "://" in model_path or "::" in model_path:
        return model_path.rstrip("/")
    if os.path.isdir(model_path):
        return os.path.abspath(model_path)
    if model_path.count("/") == 1 and not model_path.startswith((".", "/", "~")):
        return _cached_snapshot(model_path)
    raise ValueError(f"model {model_path!r} is no directory here; give a directory, an fsspec URI or a cached hub id")


def _cached_snapshot(hub_id: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, INDEX)
    if not isinstance(index, str):
        raise ValueError(
            f"model {hub_id!r} is neither a directory nor in the local hub cache, and nothing is downloaded at run "
            f"time; fetch it first: hf download {hub_id}"
        )
    return str(Path(index).parent)
