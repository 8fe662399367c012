"""The geometry of sliding tile attention (arXiv 2502.04507): tokens grouped into tiles, tiles that see each other.

A canvas of (t, h, w) tokens is cut into tiles of 6 x 8 x 8; those at its far edges may be smaller. A query sees the
keys of every tile within its head's window, and all text; text sees everything. Tokens are laid out tile by tile, each
tile padded to whole blocks of 128, so that a kernel passes over blocks or takes them.

Legend: ``s`` tokens of the model, text last; ``p`` positions of the layout; ``m`` blocks of it; ``n`` heads.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

TILE = (6, 8, 8)
BLOCK = 128
Size3 = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class TileLayout:
    """Where tokens lie when tiles are contiguous.

    ``source`` ``[p]`` is the token at a position (0 at padding), ``is_real`` ``[p]`` says which are no padding,
    ``place`` ``[s]`` is the position of a token, ``tile_of_block`` ``[m]`` the tile that a block belongs to, -1 for
    text.
    """

    num_tiles: Size3
    source: torch.Tensor
    is_real: torch.Tensor
    place: torch.Tensor
    tile_of_block: torch.Tensor

    @property
    def partial_blocks(self) -> torch.Tensor:
        """``[m]``: which blocks hold padding and tokens both; the end of the sequence counts as no padding."""
        missing = -len(self.is_real) % BLOCK
        return ~torch.nn.functional.pad(self.is_real, (0, missing), value=True).view(-1, BLOCK).all(dim=1)


@lru_cache(maxsize=8)
def tile_layout(grid: Size3, num_text: int, device: torch.device) -> TileLayout:
    """The layout of a canvas of ``grid`` tokens along t, h, w with ``num_text`` text tokens after them."""
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).view(grid)
    num_tiles = tuple(-(-size // tile) for size, tile in zip(grid, TILE, strict=True))
    sources, tiles = [], []
    for index, corner in enumerate(product(*(range(count) for count in num_tiles))):
        window = tuple(slice(at * size, (at + 1) * size) for at, size in zip(corner, TILE, strict=True))
        inside = tokens[window].flatten()
        padded = torch.nn.functional.pad(inside, (0, -len(inside) % BLOCK), value=-1)
        sources.append(padded)
        tiles += [index] * (len(padded) // BLOCK)
    sources.append(torch.arange(tokens.numel(), tokens.numel() + num_text))
    tiles += [-1] * -(-num_text // BLOCK)
    source = torch.cat(sources)
    is_real = source >= 0
    place = torch.empty(tokens.numel() + num_text, dtype=torch.long)
    place[source[is_real]] = torch.arange(len(source))[is_real]
    return TileLayout(
        num_tiles,  # type: ignore[arg-type]
        source.clamp(min=0).to(device),
        is_real.to(device),
        place.to(device),
        torch.tensor(tiles).to(device),
    )


def covers(window: Size3, num_tiles: Size3) -> bool:
    """Whether every tile sees every other."""
    return all(size >= count for size, count in zip(window, num_tiles, strict=True))


def tiles_seen(num_tiles: Size3, window: Size3) -> torch.Tensor:
    """``[q k]`` bool over tiles in (t, h, w) order: which tiles' keys a tile's queries attend to.

    Along each axis a query's centre is clamped so that its window stays on the canvas; it sees the tiles no further
    than half a window from there.
    """
    seen = torch.ones(1, 1, dtype=torch.bool)
    for count, size in zip(num_tiles, window, strict=True):
        at, half = torch.arange(count), size // 2
        centre = at.clamp(min=half).clamp(max=count - 1 - half)
        axis = (at[None, :] - centre[:, None]).abs() <= half
        seen = (seen[:, None, :, None] & axis[None, :, None, :]).reshape(len(seen) * count, -1)
    return seen


class BlockLists(NamedTuple):
    """The key blocks of each query block, ascending: counts ``[n m]`` and numbers ``[n m k]``, int32.

    ``full`` blocks are real throughout, ``partial`` ones hold padding that must be masked.
    """

    full_count: torch.Tensor
    full_blocks: torch.Tensor
    partial_count: torch.Tensor
    partial_blocks: torch.Tensor


@lru_cache(maxsize=64)
def block_lists(layout: TileLayout, windows: tuple[Size3, ...]) -> BlockLists:
    """The lists of all heads; ``windows`` has one entry a head."""
    heads = [_lists_of(layout, window) for window in windows]
    stacked = []
    for counts, blocks in ((0, 1), (2, 3)):
        longest = max(head[blocks].shape[1] for head in heads)
        padded = [torch.nn.functional.pad(head[blocks], (0, longest - head[blocks].shape[1])) for head in heads]
        stacked += [torch.stack([head[counts] for head in heads]), torch.stack(padded)]
    return BlockLists(*stacked)


@lru_cache(maxsize=64)
def _lists_of(layout: TileLayout, window: Size3) -> tuple[torch.Tensor, ...]:
    seen = blocks_seen(layout, window)
    lists = []
    for kind in (~layout.partial_blocks, layout.partial_blocks):
        chosen = seen & kind
        count = chosen.sum(dim=1, dtype=torch.int32)
        order = chosen.logical_not().to(torch.int8).sort(dim=1, stable=True).indices
        lists += [count, order[:, : max(int(count.max()), 1)].to(torch.int32)]
    return tuple(lists)


def blocks_seen(layout: TileLayout, window: Size3) -> torch.Tensor:
    """``[m m]`` bool: :func:`tiles_seen` between blocks, with text seeing and seen by all."""
    tile = layout.tile_of_block
    seen = tiles_seen(layout.num_tiles, window).to(tile.device)
    text = tile < 0
    return seen[tile.clamp(min=0)][:, tile.clamp(min=0)] | text[:, None] | text[None, :]


def density(layout: TileLayout, windows: tuple[Size3, ...]) -> float:
    """The share of dense attention's work among real tokens that is kept, over all heads."""
    missing = -len(layout.is_real) % BLOCK
    real = torch.nn.functional.pad(layout.is_real, (0, missing)).view(-1, BLOCK).sum(dim=1).double()
    kept = [float(real @ blocks_seen(layout, window).double() @ real) for window in windows]
    return sum(kept) / len(kept) / float(real.sum()) ** 2
