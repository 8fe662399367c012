"""A cheap fingerprint of a model component, the same on any host and store, another if weights or configs differ."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.canonical import canonical_json
from fastvideo.v1.dataset.runs.keys import LORA, SKIP_RULE, TILE_STRATEGY
from fastvideo.v1.models.loader.adapter_files import adapter_files
from fastvideo.v1.models.loader.repository import ModelRepository, header_end, parse_object
from fastvideo.v1.models.loader.weight_files import find_weights

if TYPE_CHECKING:
    from fastvideo.v1.dataset.runs.run import Run

NUM_BLOCKS = 16
BLOCK_BYTES = 2**16
_WHOLE_BYTES = 64 * 2**20  # tokenizers and vocabularies are read whole, and so are small weight files
_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
# paths, and versions of those who wrote
_NOT_CONTENT = ("_name_or_path", "base_model_name_or_path", "_diffusers_version", "transformers_version")


def fingerprint_component(uri: str) -> str:
    """A digest, 64 hexadecimal digits, of the configs, headers, sizes and sampled weights in the folder ``uri``.

    Variants beside the weights that are read do not count. Of a weight file over 64 MiB it reads the header and 16
    blocks of 64 KiB spread evenly, the last one included. Raises ``ValueError`` if no file in the folder counts.
    """
    fs, root = url_to_fs(uri)
    root = root.rstrip("/")
    found = fs.find(root, detail=True)
    sizes = {path[len(root) + 1 :]: info["size"] for path, info in found.items() if path.endswith(_SUFFIXES)}
    if not sizes:
        raise ValueError(f"{uri} holds no config, tokenizer or safetensors file; is the model complete?")
    direct = [name for name in sizes if "/" not in name]
    if any(name.endswith(".safetensors") for name in direct):
        weights = find_weights(uri, direct, lambda name: parse_object(fs.cat_file(f"{root}/{name}"), f"{uri}/{name}"))
        read = (weights.index_file, *weights.shards)
        sizes = {name: size for name, size in sizes.items() if ".safetensors" not in name or name in read}
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
    first = min(header_end(fs, path), size)
    stride = max((size - first - BLOCK_BYTES) // (NUM_BLOCKS - 1), 0)
    blocks = [(first + number * stride, first + number * stride + BLOCK_BYTES) for number in range(NUM_BLOCKS - 1)]
    return [(0, first), *blocks, (size - BLOCK_BYTES, size)]


def find_model(run: "Run", given: str) -> str:
    """Where the model of ``run`` is: at ``given``, or where it was planned with, if nobody gave a place.

    The default names the embedded model, which is then the run's or is not meant. Raises ``ValueError`` where the model
    is another.
    """
    try:
        check_model(run, given)
    except ValueError:
        if given != EMBEDDED_MODEL:
            raise
        check_model(run, run.model_path)
        return run.model_path
    return given


def check_model(run: "Run", model_path: str) -> None:
    """Raises ``ValueError`` unless the model at ``model_path`` is that of the run's keys, wherever it was then."""
    root = ModelRepository(model_path).root.rstrip("/")
    for name, fingerprint in run.fingerprints.items():
        if name not in (LORA, TILE_STRATEGY, SKIP_RULE) and fingerprint_component(f"{root}/{name}") != fingerprint:
            raise ValueError(f"{root}/{name} is not what run {run.name} was made with; name its model with --model")


def check_weights(run: "Run", root: str, components: Iterable[str]) -> None:
    """Raises ``ValueError`` unless ``components`` of the model in the folder ``root``, and the adapter, are still those
    of the run's keys.

    To be asked after they are loaded: then what was loaded is what was planned with, or nothing is made of it.
    """
    places = {name: f"{root.rstrip('/')}/{name}" for name in components}
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
