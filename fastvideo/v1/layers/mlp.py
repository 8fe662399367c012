"""Feed-forward layers."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from fastvideo.v1.layers.quantization import QuantizedRows, quantize_rows

_gelu_tanh = partial(F.gelu, approximate="tanh")


class UpGelu(ColumnParallelLinear):
    """A linear layer split over its outputs, and the tanh form of GELU: ``[..., d] -> [..., inner / tp]``.

    Quantized, it returns its output quantized, for the layer after it.
    """

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor | QuantizedRows:  # type: ignore[override]
        if self.quantized is not None:
            return quantize_rows(self.multiply(x), gelu=True)
        if isinstance(x, torch.Tensor) and x.is_cuda and self.bias is not None and self.branch is None:
            # cuBLASLt applies the tanh GELU in the matrix product's epilogue: one pass over the widest tensor less.
            flat = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t(), use_gelu=True)
            return flat.unflatten(0, x.shape[:-1])
        return _gelu_tanh(self.multiply(x))


class GeluMLP(nn.Module):
    """Two linear layers with the tanh form of GELU between, split over the tensor group: ``[..., d] -> [..., d]``."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.up = UpGelu(hidden_size, inner_size)
        self.down = RowParallelLinear(inner_size, hidden_size)

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:
        return self.down(self.up(x))


class SiluMLP(nn.Module):
    """Two linear layers with SiLU between, split over the tensor group: ``[..., d] -> [..., d]``."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(hidden_size, inner_size)
        self.down = RowParallelLinear(inner_size, hidden_size)

    def forward(self, x: torch.Tensor | QuantizedRows) -> torch.Tensor:
        return self.down(F.silu(self.up(x)))


class TextProjection(nn.Module):
    """Text embeddings to the width of the transformer: linear, activation, linear."""

    def __init__(
        self, text_size: int, hidden_size: int, activation: Callable[[torch.Tensor], torch.Tensor] = _gelu_tanh
    ) -> None:
        super().__init__()
        self.linear_1 = ReplicatedLinear(text_size, hidden_size)
        self.linear_2 = ReplicatedLinear(hidden_size, hidden_size)
        self.activation = activation

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.activation(self.linear_1(text)))
