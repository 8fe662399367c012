"""Feed-forward layers."""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear


class GeluMLP(nn.Module):
    """Two linear layers with the tanh form of GELU between, split over the tensor group: ``[..., d] -> [..., d]``."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(hidden_size, inner_size)
        self.down = RowParallelLinear(inner_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(_linear_gelu(self.up, x))


class TextProjection(nn.Module):
    """Text embeddings to the width of the transformer: linear, tanh GELU, linear."""

    def __init__(self, text_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = ReplicatedLinear(text_size, hidden_size)
        self.linear_2 = ReplicatedLinear(hidden_size, hidden_size)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


def _linear_gelu(linear: ColumnParallelLinear, x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda and linear.bias is not None and linear.branch is None:
        # cuBLASLt applies the tanh GELU in the matrix product's epilogue: one pass over the widest tensor less.
        flat = torch._addmm_activation(linear.bias, x.flatten(0, -2), linear.weight.t(), use_gelu=True)
        return flat.unflatten(0, x.shape[:-1])
    return F.gelu(linear(x), approximate="tanh")
