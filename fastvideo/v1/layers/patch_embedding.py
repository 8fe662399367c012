"""Latents to tokens and back."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product: ``[b, c, t, h, w]`` to ``[b, s, d]``."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(hidden_size, in_channels, *patch_size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pt, ph, pw = self.patch_size
        patches = rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        return F.linear(patches, self.weight.flatten(1), self.bias)


def unpatchify(tokens: torch.Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> torch.Tensor:
    """``[b, t h w, pt ph pw c]`` to ``[b, c, t pt, h ph, w pw]`` for a ``grid`` of (t, h, w) tokens."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    return rearrange(tokens, "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)
