"""Models that take turns on a device that cannot hold them all."""

from collections.abc import Sequence

import torch
from torch import nn


class ModelSwap:
    """Keeps the weights of one of ``models`` on ``device``, those of the others in host memory.

    Weights never change, so each has a copy in pinned host memory for good: leaving the device costs nothing, coming
    back one copy, in order with the device's work; the host does not wait. On a CPU nothing moves.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._resident: nn.Module | None = None
        self._host = {} if device.type == "cpu" else {model: _pinned_copies(model) for model in models}

    def bring(self, model: nn.Module) -> None:
        """Has ``model`` on the device, in place of the one that was."""
        if model is self._resident or not self._host:
            return
        for other, copies in self._host.items():
            if other is not model:
                for parameter, copy in copies:
                    parameter.data = copy
        for parameter, copy in self._host[model]:
            if parameter.device != self._device:
                parameter.data = copy.to(self._device, non_blocking=True)
        self._resident = model


def _pinned_copies(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Each parameter with its copy; those of a dtype share a block, since a block is rounded up to a power of two."""
    copies = []
    for dtype in {parameter.dtype for parameter in model.parameters()}:
        parameters = [parameter for parameter in model.parameters() if parameter.dtype is dtype]
        sizes = [parameter.numel() for parameter in parameters]
        block = torch.empty(sum(sizes), dtype=dtype, pin_memory=True)
        for parameter, part in zip(parameters, block.split(sizes), strict=True):
            copies.append((parameter, part.view_as(parameter).copy_(parameter.data)))
    return copies
