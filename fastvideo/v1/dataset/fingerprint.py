"""A cheap fingerprint of a model component, the same on any host and store, another if weights or configs differ."""

import hashlib
import json
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from fastvideo.v1.dataset.canonical import canonical_json
from fastvideo.v1.dataset.keys import LORA
from fastvideo.v1.models.loader.adapter_files import adapter_files

if TYPE_CHECKING:
    from fastvideo.v1.dataset.run import Run

NUM_BLOCKS = 16
BLOCK_BYTES = 2**16
_WHOLE_BYTES = 64 * 2**20  # tokenizers and vocabularies are read whole, and so are small weight files
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
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
    if header_bytes > _LONGEST_HEADER:
        raise ValueError(f"{path}: a header of {header_bytes} bytes is no safetensors file's; fetch the model again")
    first = min(8 + header_bytes, size)
    stride = max((size - first - BLOCK_BYTES) // (NUM_BLOCKS - 1), 0)
    blocks = [(first + number * stride, first + number * stride + BLOCK_BYTES) for number in range(NUM_BLOCKS - 1)]
    return [(0, first), *blocks, (size - BLOCK_BYTES, size)]


def check_weights(run: "Run", components: Iterable[str]) -> None:
    """Raises ``ValueError`` unless ``components`` of the model, and the adapter, are still those of the run's keys.

    To be asked after they are loaded: then what was loaded is what was planned with, or nothing is made of it.
    """
    places = {name: f"{run.model_path.rstrip('/')}/{name}" for name in components}
    found = {name: fingerprint_component(uri) for name, uri in places.items()}
    if LORA in run.fingerprints and "transformer" in places:
        places[LORA] = run.engine["lora_path"]
        found[LORA] = fingerprint_adapter(places[LORA])
    for name, fingerprint in found.items():
        if fingerprint != run.fingerprints[name]:
            raise ValueError(
                f"{places[name]} has changed since run {run.name} was planned, whose keys it is a part of; put back "
                "what was there, or run the same command again for a run with what is there now"
            )
