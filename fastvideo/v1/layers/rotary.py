"""Rotary position embedding over a (t, h, w) grid (arXiv 2104.09864), with neighbouring channels as pairs.

Legend: ``s = t * h * w`` tokens, ``n`` heads, ``d`` head size.
"""

from functools import lru_cache

import torch
from einops import rearrange

RotaryTables = tuple[torch.Tensor, torch.Tensor]


@lru_cache(maxsize=8)
def rotary_tables(
    grid: tuple[int, int, int], axes_dim: tuple[int, int, int], theta: float, device: torch.device
) -> RotaryTables:
    """Cosines and sines, float32 ``[s, d / 2]`` each, of a grid of tokens; computed in float64, kept for recurring
    grids.

    ``axes_dim`` are the channels of a head that rotate with t, h and w; they add up to ``d``.
    """
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, axes_dim, strict=True)):
        frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, dim // 2))
    table = rearrange(torch.cat(angles, dim=-1), "t h w d -> (t h w) d")
    return table.cos().float().to(device), table.sin().float().to(device)


def apply_rotary(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Rotates ``[b, s, n, d]`` by ``tables``; computed in float32, the input's dtype returned."""
    cos, sin = (rearrange(table, "s d -> s 1 d") for table in tables)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
