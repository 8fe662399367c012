"""Tensors that lie one after another in one buffer, so that one copy moves them all."""

import math
from collections.abc import Sequence

import torch

_ALIGNMENT = 256  # bytes: what the allocator of a GPU gives every tensor, and kernels build on


class Packing:
    """Where each of ``tensors``, of any shapes and data types, lies within ``num_bytes``."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.num_bytes = 0
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []
        for tensor in tensors:
            self._places.append((self.num_bytes, tensor.shape, tensor.dtype))
            self.num_bytes += math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that the bytes of ``buffer``, uint8 ``[num_bytes]`` or longer, hold; nothing is copied."""
        return [
            buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for start, shape, dtype in self._places
        ]


def host_buffer(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Uninitialised bytes in host memory, which a GPU may copy from by itself.

    Such memory is rounded up to a power of two: ask for one large buffer rather than for many.
    """
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
