"""A cheap fingerprint of a model component, the same on any host and store, another if weights or configs differ."""

import hashlib
import json
import struct
from typing import Any

from fsspec.core import url_to_fs

from fastvideo.v1.dataset.canonical import canonical_json
from fastvideo.v1.models.loader.adapter_files import adapter_files

NUM_BLOCKS = 16
BLOCK_BYTES = 2**16
_WHOLE_BYTES = 64 * 2**20  # tokenizers and vocabularies are read whole, and so are small weight files
_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
# paths, and versions of those who wrote
_NOT_CONTENT = ("_name_or_path", "base_model_name_or_path", "_diffusers_version", "transformers_version")


def fingerprint_component(uri: str) -> str:
    """A digest, 64 hexadecimal digits, of the configs, headers, sizes and sampled weights in the folder ``uri``.

    Of a weight file over 64 MiB it reads the header and 16 blocks of 64 KiB spread evenly, the last one included.
    Raises ``ValueError`` if the folder holds no file that counts.
    """
    fs, root = url_to_fs(uri)
    root = root.rstrip("/")
    found = fs.find(root, detail=True)
    sizes = {path[len(root) + 1 :]: info["size"] for path, info in found.items() if path.endswith(_SUFFIXES)}
    if not sizes:
        raise ValueError(f"{uri} holds no config, tokenizer or safetensors file; is the model complete?")
    files = {name: _digest_file(fs, f"{root}/{name}", size) for name, size in sorted(sizes.items())}
    return hashlib.sha256(canonical_json(files)).hexdigest()


def fingerprint_adapter(uri: str) -> str:
    """A digest like a component's of a LoRA adapter, a safetensors file or a folder with one, whatever its name."""
    fs, weights, config = adapter_files(uri)
    digests = [_digest_file(fs, path, fs.size(path)) for path in (weights, config) if path]
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def _digest_file(fs: Any, path: str, size: int) -> str:
    if path.endswith("config.json"):
        config = json.loads(fs.cat_file(path))
        return hashlib.sha256(canonical_json({k: v for k, v in config.items() if k not in _NOT_CONTENT})).hexdigest()
    digest = hashlib.sha256(str(size).encode())
    for start, end in _ranges(fs, path, size):
        digest.update(fs.cat_file(path, start=start, end=end))
    return digest.hexdigest()


def _ranges(fs: Any, path: str, size: int) -> list[tuple[int, int]]:
    if size <= _WHOLE_BYTES or not path.endswith(".safetensors"):
        return [(0, size)]
    (header_bytes,) = struct.unpack("<Q", fs.cat_file(path, start=0, end=8))
    first = min(8 + header_bytes, size)
    stride = max((size - first - BLOCK_BYTES) // (NUM_BLOCKS - 1), 0)
    blocks = [(first + number * stride, first + number * stride + BLOCK_BYTES) for number in range(NUM_BLOCKS - 1)]
    return [(0, first), *blocks, (size - BLOCK_BYTES, size)]
