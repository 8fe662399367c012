"""Where an adapter's files lie."""

import posixpath
from typing import Any

from fsspec.core import url_to_fs

CONFIG = "adapter_config.json"


def adapter_files(uri: str) -> tuple[Any, str, str | None]:
    """The file system, the path of the weights, and that of the PEFT config beside them if there is one.

    ``uri`` is a safetensors file or a folder with just one; else ``ValueError``.
    """
    fs, root = url_to_fs(uri)
    is_folder = fs.isdir(root)
    folder = root if is_folder else posixpath.dirname(root)
    found = fs.find(root, maxdepth=1) if fs.exists(root) else []
    weights = [path for path in found if path.endswith(".safetensors")]
    if len(weights) != 1:
        raise ValueError(f"adapter {uri!r} has {len(weights)} safetensors files; name a file, or a folder with one")
    config = f"{folder.rstrip('/')}/{CONFIG}"
    return fs, weights[0], config if fs.exists(config) else None
