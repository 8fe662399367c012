"""Models that take turns on a device that cannot hold them all."""

from collections.abc import Sequence

import torch
from torch import nn

from fastvideo.v1.models.packing import Packing, host_buffer


class ModelSwap:
    """Keeps the weights of one of ``models`` on ``device``, those of the others in host memory.

    Weights never change, so each has a copy in pinned host memory for good: leaving the device costs nothing, coming
    back one copy, in order with the device's work; the host does not wait. On a CPU nothing moves.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._resident: nn.Module | None = None
        self._host = {} if device.type == "cpu" else {model: _host_copies(model, device) for model in models}

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


def _host_copies(model: nn.Module, device: torch.device) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Each parameter with its copy."""
    parameters = list(model.parameters())
    packing = Packing(parameters)
    copies = packing.views(host_buffer(packing.num_bytes, device))
    for parameter, copy in zip(parameters, copies, strict=True):
        copy.copy_(parameter.data)
    return list(zip(parameters, copies, strict=True))
