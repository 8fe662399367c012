"""Work on a large picture in overlapping square tiles, on a long video in overlapping spans; seams are blended.

Legend: ``b`` batch, ``c`` channels, ``t`` frames, ``h w`` rows and columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """Square tiles of ``tile`` rows and columns, or spans of ``tile`` frames, one every ``stride``."""

    tile: int
    stride: int

    @property
    def overlap(self) -> int:
        return self.tile - self.stride

    def exceeded_by(self, x: torch.Tensor) -> bool:
        """Whether the pictures of ``x`` ``[b c t h w]`` are larger than one tile."""
        return max(x.shape[-2:]) > self.tile


def process_tiles(
    x: torch.Tensor,
    process: Callable[[torch.Tensor], torch.Tensor],
    source: TileGrid,
    target: TileGrid,
) -> torch.Tensor:
    """``process`` applied to every tile of ``x``, the results joined: ``[b c t h w] -> [b c' t' h' w']``.

    ``source`` is the grid on ``x``, ``target`` the same grid on the result. A tile fades in over the overlap with its
    upper neighbour, then with its left one, in the order of diffusers' ``AutoencoderKLWan.tiled_decode``.
    """
    height, width = (size * target.tile // source.tile for size in x.shape[-2:])
    out: torch.Tensor | None = None
    above: list[torch.Tensor] = []
    for row, top in enumerate(range(0, x.shape[-2], source.stride)):
        below: list[torch.Tensor] = []
        left: torch.Tensor | None = None
        for column, start in enumerate(range(0, x.shape[-1], source.stride)):
            tile = process(x[..., top : top + source.tile, start : start + source.tile])
            if row > 0:
                _fade_in(tile, above[column], dim=-2)
            if left is not None:
                _fade_in(tile, left, dim=-1)
            # Copied, so that a tile is freed once its seams and its middle are taken.
            below.append(tile[..., -target.overlap :, :].clone())
            left = tile[..., -target.overlap :].clone()
            if out is None:
                out = tile.new_empty(*tile.shape[:-2], height, width)
            window = out[..., row * target.stride :, column * target.stride :][..., : target.stride, : target.stride]
            window.copy_(tile[..., : window.shape[-2], : window.shape[-1]])
        above = below
    assert out is not None, f"no tiles in an input of shape {tuple(x.shape)}"
    return out


def process_spans(
    x: torch.Tensor,
    process: Callable[[torch.Tensor], torch.Tensor],
    source: TileGrid,
    target: TileGrid,
) -> Iterator[torch.Tensor]:
    """``process`` applied to every span of frames of ``x``, the results joined and handed on a stride at a time.

    Causal models keep the first frame single, so the spans stand behind it, and each has one frame more in front: the
    first frame itself, or one that only lends its place and is dropped from the result. The order is that of diffusers'
    ``AutoencoderKLHunyuanVideo._temporal_tiled_decode``.
    """
    seam: torch.Tensor | None = None
    for start in range(0, max(x.shape[2] - 1, 1), source.stride):
        span = process(x[:, :, start : start + source.tile + 1])
        if seam is None:
            ready = span[:, :, : target.stride + 1]
        else:
            span = span[:, :, 1:]
            _fade_in(span, seam, dim=-3)
            ready = span[:, :, : target.stride]
        # Copied, because whoever takes the frames may change them.
        seam = span[:, :, -target.overlap :].clone()
        yield ready


def _fade_in(tile: torch.Tensor, seam: torch.Tensor, dim: int) -> None:
    """Blend the first columns (or rows, or frames) of ``tile`` with its neighbour's last ones, ``seam``, in place."""
    size = min(seam.shape[dim], tile.shape[dim])
    weight = torch.arange(size, device=tile.device, dtype=torch.float32) / size
    weight = weight.view(-1, *[1] * (-1 - dim))
    head = tile.narrow(dim, 0, size)
    tail = seam.narrow(dim, seam.shape[dim] - size, size)
    head.copy_(tail * (1 - weight) + head * weight)
