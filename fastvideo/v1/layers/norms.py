"""Normalisation: statistics in float32, the input's dtype returned."""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.distributed.communication import all_reduce
from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.parallel_state import get_tp_group
from fastvideo.v1.layers.weight_loading import copy_exactly


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension. ``[..., d] -> [..., d]`` (arXiv 1910.07467)."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda and x.ndim == 3 and x.stride(-1) == 1 and x.stride(0) == x.stride(1) * x.shape[1]:
            from fastvideo.v1.layers.kernels.qk_norm import rms_norm

            return rms_norm(x, self.weight, self.eps)
        return (F.rms_norm(x.float(), x.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


class ColumnParallelRMSNorm(RMSNorm):
    """RMS norm over the outputs of a column-parallel layer, of which each rank holds a part.

    ``[..., d / tp] -> [..., d / tp]``; ``hidden_size`` is ``d``.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        self._group = get_tp_group()
        super().__init__(self._group.shard_size(hidden_size, "hidden_size"), eps)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        copy_exactly(param.data, self._group.shard(loaded, dim=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._group.size == 1:
            return super().forward(x)
        return (x.float() * (mean_square(x, self._group) + self.eps).rsqrt() * self.weight).to(x.dtype)


def mean_square(x: torch.Tensor, group: ParallelGroup) -> torch.Tensor:
    """Of ``[..., d / size]`` on each rank over all of ``d``: float32 ``[..., 1]``."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return all_reduce(norm.square(), group) / (x.shape[-1] * group.size)


class LayerNorm(nn.Module):
    """Layer norm over the last dimension, with weight and bias if ``affine``. ``[..., d] -> [..., d]``."""

    def __init__(self, hidden_size: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape = (hidden_size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size), requires_grad=False) if affine else None
        self.bias = nn.Parameter(torch.zeros(hidden_size), requires_grad=False) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
