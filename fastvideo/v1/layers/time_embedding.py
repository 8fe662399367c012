"""Embedding of diffusion timesteps."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.layers.linear import ReplicatedLinear


def sinusoid(timestep: torch.Tensor, dim: int, max_period: float = 10_000.0) -> torch.Tensor:
    """Float32 ``[..., dim]`` of ``timestep`` ``[...]``: cosines first, then sines (arXiv 2006.11239)."""
    half = dim // 2
    exponent = -math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float().unsqueeze(-1) * exponent.exp()
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimestepEmbedder(nn.Module):
    """Sinusoid, then two layers with SiLU between; ``[...]`` to ``[..., d]`` in the dtype of its weights."""

    def __init__(self, frequency_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.frequency_dim = frequency_dim
        self.linear_1 = ReplicatedLinear(frequency_dim, hidden_size)
        self.linear_2 = ReplicatedLinear(hidden_size, hidden_size)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        x = sinusoid(timestep, self.frequency_dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(x)))
