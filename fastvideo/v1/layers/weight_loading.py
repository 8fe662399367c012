"""How a checkpoint's tensor gets into a parameter."""

import torch
from torch import nn


def copy_exactly(target: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copies with a change of dtype and device, never of shape; a mismatch raises ``ValueError``."""
    if target.shape != loaded.shape:
        raise ValueError(f"shape {list(loaded.shape)} in the checkpoint, {list(target.shape)} in the model")
    target.copy_(loaded)


def load_parameter(param: nn.Parameter, loaded: torch.Tensor, part: int) -> None:
    """Loads one tensor of the checkpoint; a layer that splits or merges brings its own ``weight_loader``."""
    loader = getattr(param, "weight_loader", None)
    if loader is None:
        copy_exactly(param.data, loaded)
    else:
        loader(param, loaded, part)
