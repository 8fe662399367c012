"""What the parity tests share: distances, and a reference's weights in one of our models."""

from collections.abc import Callable

import pytest
import torch

from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.weights import assign_weights, parameter_of


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
def checkpoint_names() -> Callable[[Model, dict[str, torch.Tensor]], dict[str, tuple[str, int] | None]]:
    """Each name of a checkpoint that a model needs, with the name of our parameter and the part of it."""

    def names(model: Model, checkpoint: dict[str, torch.Tensor]) -> dict[str, tuple[str, int] | None]:
        parameters = dict(model.named_parameters())
        needed = [name for name in checkpoint if not name.endswith(model.ignored_keys)]
        return {name: parameter_of(model, parameters, name) for name in needed}

    return names


@pytest.fixture
def load_weights() -> Callable[[Model, dict[str, torch.Tensor]], None]:
    """Copy a reference's state dict into our model; every parameter of ours must be filled."""

    def load(model: Model, checkpoint: dict[str, torch.Tensor]) -> None:
        assign_weights(model, (("reference", name, tensor) for name, tensor in checkpoint.items()), "reference")

    return load
