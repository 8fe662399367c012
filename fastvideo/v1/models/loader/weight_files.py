"""Which files of a component's folder hold its weights; variants beside them (``*.fp16.safetensors``) are not read."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastvideo.v1.models.loader.repository import ModelRepository

_PUBLISHED = ("diffusion_pytorch_model.safetensors", "model.safetensors")


class WeightFiles(NamedTuple):
    """Names within the folder; ``places`` says by the index, if there is one, which shard has which tensor."""

    index_file: str | None
    shards: list[str]
    places: dict[str, str]


def find_weights(origin: str, files: Sequence[str], read_json: Callable[[str], dict[str, Any]]) -> WeightFiles:
    """Those of ``files``, the names in the folder ``origin``, that are read: an index and what it lists, or one file.

    Of several, that of the published name. Raises ``ValueError`` if it cannot be told, or if a file is missing.
    """
    if (index := _chosen(files, ".safetensors.index.json")) is not None:
        places = read_json(index).get("weight_map")
        if not (places and isinstance(places, dict)):
            raise ValueError(f"{origin}/{index}: weight_map={places!r} must give the file of each tensor")
        shards = sorted(set(places.values()))
        if absent := [shard for shard in shards if shard not in files]:
            raise ValueError(f"{origin}/{absent[0]} is missing, though {index} lists it")
        return WeightFiles(index, shards, places)
    if (shard := _chosen(files, ".safetensors")) is None:
        count = sum(name.endswith(".safetensors") for name in files)
        names = " or ".join(_PUBLISHED)
        raise ValueError(f"{origin} has {count} safetensors files and no index; one is expected, or one named {names}")
    return WeightFiles(None, [shard], {})


def shard_files(repository: ModelRepository, folder: str) -> list[str]:
    """The safetensors files of a component, by its index if it has one."""
    return [f"{folder}/{shard}" for shard in _weights_of(repository, folder).shards]


def tensor_names(repository: ModelRepository, folder: str) -> list[str]:
    """Names of a component's tensors, by its index, else by the header of its one file; weights are not read."""
    weights = _weights_of(repository, folder)
    return list(weights.places or repository.read_header(f"{folder}/{weights.shards[0]}"))


def _weights_of(repository: ModelRepository, folder: str) -> WeightFiles:
    files = repository.files(folder)
    if not files:
        raise ValueError(
            f"{repository.root}/{folder} is missing: the component named in model_index.json has no folder"
        )
    return find_weights(f"{repository.root}/{folder}", files, lambda name: repository.read_json(f"{folder}/{name}"))


def _chosen(files: Sequence[str], ending: str) -> str | None:
    """The only one of ``files`` with this ending, else that of a published name."""
    found = [name for name in files if name.endswith(ending)]
    published = [name for name in found if name.removesuffix(ending) + ".safetensors" in _PUBLISHED]
    return next(iter(found if len(found) == 1 else published), None)
