"""What the parity tests share: fresh seeds, distances, and a reference's weights in one of our models."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastvideo.v1.models.base import Model


@pytest.fixture(autouse=True)
def fresh_seed() -> int:
    """Every test draws new inputs; the seed is in the captured output of a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return seed


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def max_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The largest difference, relative to the largest value of the reference."""
    return lambda ours, reference: ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture
def rms_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The root mean square of the difference, relative to that of the reference."""

    def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
        return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()

    return error


@pytest.fixture
def checkpoint_names() -> Callable[[Model, dict[str, torch.Tensor]], dict[str, tuple[str, int]]]:
    """Each name of a checkpoint that a model needs, with the name of our parameter and the part of it."""

    def names(model: Model, checkpoint: dict[str, torch.Tensor]) -> dict[str, tuple[str, int]]:
        places = {}
        for name in checkpoint:
            if not name.endswith(model.ignored_keys):
                places[name] = _place(model, name)
        return places

    return names


def _place(model: Model, name: str) -> tuple[str, int]:
    for prefix, ours in model.renamed_keys.items():
        if name.startswith(prefix):
            name = ours + name.removeprefix(prefix)
    path = name.split(".")
    for merged, separate in model.packed_modules.items():
        if path[-2] in separate:
            return ".".join([*path[:-2], merged, path[-1]]), separate.index(path[-2])
    return name, 0


@pytest.fixture
def load_weights(checkpoint_names) -> Callable[[Model, dict[str, torch.Tensor]], None]:
    """Copy a reference's state dict into our model; every parameter of ours must be filled."""

    def load(model: Model, checkpoint: dict[str, torch.Tensor]) -> None:
        parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        places = checkpoint_names(model, checkpoint)
        assert {ours for ours, _ in places.values()} == set(parameters)
        for name, (ours, part) in places.items():
            parameter = parameters[ours]
            if hasattr(parameter, "weight_loader"):
                parameter.weight_loader(parameter, checkpoint[name], part)
            else:
                parameter.data.copy_(checkpoint[name])

    return load
