"""Safetensors shards into a model's parameters, one tensor in memory at a time.

Of a parameter that is itself sharded, all is gathered in host memory before a rank keeps its part: one parameter at a
time, or a few where a checkpoint's files part what we merge.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fastvideo.v1.layers.low_rank import WeightDelta
from fastvideo.v1.layers.weight_loading import load_parameter
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.loader.weight_files import shard_files

Target: TypeAlias = tuple[str, int]
"""A parameter's name and a part of it."""

_CPU = torch.device("cpu")


def load_weights(
    model: Model,
    repository: ModelRepository,
    folder: str,
    deltas: Mapping[Target, WeightDelta] | None = None,
    device: torch.device = _CPU,
) -> None:
    """Fills ``model`` from the shards in ``folder``, each tensor with its own of ``deltas`` added in float32.

    ``device`` is where the sum is made: a CPU and a GPU round it differently.

    Raises ``ValueError`` naming the file for a truncated shard, a wrong shape, an unknown key, and naming the folder
    and the first keys for parameters that no shard had.
    """
    shards = shard_files(repository, folder)
    tensors = (
        (f"{repository.root}/{shard}", key, tensor) for shard in shards for key, tensor in _tensors(repository, shard)
    )
    assign_weights(model, tensors, f"{repository.root}/{folder}", deltas, device)


def assign_weights(
    model: Model,
    tensors: Iterable[tuple[str, str, torch.Tensor]],
    origin: str,
    deltas: Mapping[Target, WeightDelta] | None = None,
    device: torch.device = _CPU,
) -> None:
    """Fills ``model`` from (file, key, tensor) triples; errors are those of :func:`load_weights`."""
    parameters = dict(model.named_parameters())
    missing = {name: set(range(_num_parts(model, name))) for name in parameters}
    gathered: dict[str, nn.Parameter] = {}
    for file, key, tensor in tensors:
        target = parameter_of(model, parameters, key)
        if target is None:
            if key.endswith(model.ignored_keys):
                continue
            check_key(type(model), key, file)
            raise ValueError(f"{file}: key {key!r} is not of {type(model).__name__}")
        name, part = target
        parameter = parameters[name]
        if model.weights_are_shared_out:
            parameter = _whole(name, parameter, gathered)
        try:
            if deltas and target in deltas:
                tensor = deltas[target].added_to(tensor, device)
            load_parameter(parameter, tensor, part)
        except ValueError as error:
            raise ValueError(f"{file}: {key}: {error}") from None
        missing[name].discard(part)
        if name in gathered and not missing[name]:
            _keep_part(parameters[name], gathered.pop(name))
    if count := sum(map(len, missing.values())):
        names = ", ".join(sorted(name for name, parts in missing.items() if parts)[:3])
        raise ValueError(f"{origin} lacks {count} weights of {type(model).__name__}: {names}, …")


def check_key(model_class: type[Model], key: str, file: str) -> None:
    """Raises ``ValueError`` with the reason if ``model_class`` refuses a checkpoint with such a key."""
    for part, reason in model_class.refused_keys.items():
        if part in key:
            raise ValueError(f"{file}: key {key!r} is {reason}")


def parameter_of(model: Model, parameters: Mapping[str, nn.Parameter], key: str) -> Target | None:
    """The parameter that the checkpoint's ``key`` belongs to and the part of it, or None."""
    for old, new in model.renamed_keys.items():
        key = key.replace(old, new)
    if key in parameters:
        return key, 0
    for packed, parts in model.packed_modules.items():
        for part, name in enumerate(parts):
            candidate = key.replace(f".{name}.", f".{packed}.")
            if candidate != key and candidate in parameters:
                return candidate, part
    return None


def _whole(name: str, parameter: nn.Parameter, gathered: dict[str, nn.Parameter]) -> nn.Parameter:
    """What a tensor of the checkpoint is loaded into: ``parameter``, or what ``gathered`` holds in its stead."""
    from fastvideo.v1.models.sharding import gathered_like  # FSDP takes seconds to import

    if name not in gathered and (whole := gathered_like(parameter)) is not None:
        gathered[name] = whole
    return gathered.get(name, parameter)


def _keep_part(parameter: nn.Parameter, whole: nn.Parameter) -> None:
    from fastvideo.v1.models.sharding import keep_part

    keep_part(parameter, whole)


def _num_parts(model: Model, name: str) -> int:
    module = name.split(".")[-2] if "." in name else ""
    return len(model.packed_modules.get(module, ("whole",)))


def _tensors(repository: ModelRepository, shard: str) -> Iterator[tuple[str, torch.Tensor]]:
    with repository.local(shard) as (path,):
        yield from _open_shard(path, f"{repository.root}/{shard}")


def _open_shard(path: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{name} is truncated or damaged: {error}") from None
