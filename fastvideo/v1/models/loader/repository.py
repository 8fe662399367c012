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
            return json.loads(self._fs.cat_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            raise ValueError(f"{self.root}/{name} is missing") from None
        except ValueError as error:
            raise ValueError(f"{self.root}/{name} is not valid JSON: {error}") from None

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
