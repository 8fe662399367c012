"""How a checkpoint's tensor gets into a parameter."""

from collections.abc import Sequence

import torch
from torch import nn


def check_shape(loaded: torch.Tensor, shape: Sequence[int]) -> None:
    """Raises ``ValueError`` unless a checkpoint's tensor has the ``shape`` that the model has for it."""
    if loaded.shape != tuple(shape):
        raise ValueError(f"shape {list(loaded.shape)} in the checkpoint, {list(shape)} in the model")


def copy_exactly(target: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copies with a change of dtype and device, never of shape; a mismatch raises ``ValueError``."""
    check_shape(loaded, target.shape)
    target.copy_(loaded)


def keep_loader(old: torch.Tensor, new: nn.Parameter) -> None:
    """Gives ``new`` the ``weight_loader`` of ``old``, if it brought one."""
    if (loader := getattr(old, "weight_loader", None)) is not None:
        new.weight_loader = loader  # type: ignore[attr-defined]


def load_parameter(param: nn.Parameter, loaded: torch.Tensor, part: int) -> None:
    """Loads one tensor of the checkpoint; a layer that splits or merges brings its own ``weight_loader``."""
    loader = getattr(param, "weight_loader", None)
    if loader is None:
        copy_exactly(param.data, loaded)
    else:
        loader(param, loaded, part)
