"""Sliding tile attention: block-sparse FlashAttention 4 on Hopper and newer, FlexAttention elsewhere."""

from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.v1.attention.backends.abstract import AttentionBackend
from fastvideo.v1.attention.backends.flash_attn import FlashAttentionBackend, installed_version
from fastvideo.v1.attention.backends.sdpa import SDPABackend
from fastvideo.v1.attention.sliding_tiles import BLOCK, Size3, TileLayout, block_lists, blocks_seen, covers, tile_layout
from fastvideo.v1.attention.strategy import TileStrategy
from fastvideo.v1.distributed.parallel_state import get_tp_group, get_ulysses_group
from fastvideo.v1.forward_context import get_forward_context

SCORES_AT_ONCE = 2**28  # of uncompiled FlexAttention, which materialises them: 1 GiB in float32


class SlidingTileBackend(AttentionBackend):
    """Self-attention of video tokens, with text after them or none, over the windows of the call's strategy.

    The forward context carries the strategy, the canvas and the step. A layer whose heads all see the whole canvas is
    dense. Raises ``ValueError`` for a causal layer.
    """

    exact = False

    def __init__(
        self, num_heads: int, head_size: int, softmax_scale: float, causal: bool, layer_index: int = 0
    ) -> None:
        if causal:
            raise ValueError("SLIDING_TILE_ATTN has windows on both sides of a token, and cannot serve a causal layer")
        super().__init__(num_heads, head_size, softmax_scale, causal, layer_index)
        self._dense: AttentionBackend | None = None

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        context = get_forward_context()
        if context.tile_strategy is None or context.token_grid is None:
            raise ValueError("SLIDING_TILE_ATTN needs a strategy; set engine.sliding_tile_strategy to its JSON file")
        num_text = query.shape[1] - context.token_grid[0] * context.token_grid[1] * context.token_grid[2]
        layout = tile_layout(context.token_grid, num_text, query.device)
        windows = self._windows(context.tile_strategy, context.step_index, query.shape[2])
        if all(covers(window, layout.num_tiles) for window in windows):
            return self._dense_backend(query).forward(query, key, value)
        return sliding_tile_attention(query, key, value, layout, windows, self.softmax_scale)

    def _windows(self, strategy: TileStrategy, step: int, num_local_heads: int) -> tuple[Size3, ...]:
        """Those of this rank's heads, which the tensor group splits before the ulysses group does."""
        windows = strategy.of(step, self.layer_index)
        tensor, ulysses = get_tp_group(), get_ulysses_group()
        num_heads = num_local_heads * tensor.size * ulysses.size
        if len(windows) != num_heads:
            raise ValueError(
                f"strategy {strategy.origin} has {len(windows)} heads in layer {self.layer_index}, the "
                f"model {num_heads}; a strategy belongs to one model"
            )
        first = (tensor.rank * ulysses.size + ulysses.rank) * num_local_heads
        return windows[first : first + num_local_heads]

    def _dense_backend(self, query: torch.Tensor) -> AttentionBackend:
        if self._dense is None:
            flash_cannot = FlashAttentionBackend.obstacle(self.head_size, query.dtype, query.device)
            kind = SDPABackend if flash_cannot else FlashAttentionBackend
            self._dense = kind(self.num_heads, self.head_size, self.softmax_scale, self.causal, self.layer_index)
        return self._dense


def sliding_tile_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    windows: tuple[Size3, ...],
    softmax_scale: float,
) -> torch.Tensor:
    """``[b, s, n, d]`` each, tokens in the model's order, to ``[b, s, n, d]``; ``windows`` has one entry a head."""
    query, key, value = (x[:, layout.source] for x in (query, key, value))
    blocks = sparse_flash_blocks if _has_sparse_flash(query) else flex_blocks
    return blocks(query, key, value, layout, windows, softmax_scale)[:, layout.place]


def _has_sparse_flash(query: torch.Tensor) -> bool:
    return (
        installed_version() == 4
        and FlashAttentionBackend.obstacle(query.shape[-1], query.dtype, query.device) is None
        and query.shape[-1] == 128  # of other head sizes the kernel's blocks are not 128 x 128
    )


def sparse_flash_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    windows: tuple[Size3, ...],
    softmax_scale: float,
) -> torch.Tensor:
    """FlashAttention 4 over the blocks that are seen; all ``[b, p, n, d]``, in the layout's order."""
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    lists = block_lists(layout, windows)
    sparse = BlockSparseTensorsTorch(
        mask_block_cnt=lists.partial_count[None],
        mask_block_idx=lists.partial_blocks[None],
        full_block_cnt=lists.full_count[None],
        full_block_idx=lists.full_blocks[None],
        block_size=(BLOCK, BLOCK),
    )
    masks: dict[str, Any] = {}
    if bool(_has_padding(layout)):
        masks = {"mask_mod": _padding_mask(), "aux_tensors": [_real_as_integers(layout)]}
    out = flash_attn_func(query, key, value, softmax_scale=softmax_scale, block_sparse_tensors=sparse, **masks)
    return out[0] if isinstance(out, tuple) else out


@lru_cache(maxsize=8)
def _has_padding(layout: TileLayout) -> bool:
    return bool(layout.partial_blocks.any())


@lru_cache(maxsize=8)
def _real_as_integers(layout: TileLayout) -> torch.Tensor:
    return layout.is_real.to(torch.int32)


@cache
def _padding_mask() -> Any:
    """A mask in FlashAttention's own language: keys that are padding are not seen."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute import utils

    @cute.jit
    def key_is_real(batch, head, query_index, key_index, seqlen_info, aux_tensors):  # type: ignore[no-untyped-def]
        real = utils.scalar_to_ssa(aux_tensors[0][key_index[0]], cutlass.Int32)
        return real > utils.scalar_to_ssa(0, cutlass.Int32)

    return key_is_real


def flex_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    windows: tuple[Size3, ...],
    softmax_scale: float,
) -> torch.Tensor:
    """The same by FlexAttention; on a CPU, where it would hold all scores, long sequences a block of queries a time."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if not query.is_cuda and query[..., 0].numel() * key.shape[2] > SCORES_AT_ONCE:
        return _by_query_blocks(query, key, value, layout, windows, softmax_scale).transpose(1, 2)
    mask = _flex_mask(layout, windows)
    out = _flex(query.device.type)(query, key, value, block_mask=mask, scale=softmax_scale)
    return out.transpose(1, 2)


def _by_query_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: TileLayout,
    windows: tuple[Size3, ...],
    softmax_scale: float,
) -> torch.Tensor:
    """``[b, n, p, d]`` each, to the same: at most one block's mask ``[n, p]`` and no scores are held."""
    by_head = [blocks_seen(layout, window) for window in windows]
    outs = []
    for index, queries in enumerate(query.split(BLOCK, dim=2)):
        blocks = torch.stack([seen[index] for seen in by_head])
        mask = blocks.repeat_interleave(BLOCK, dim=1)[:, : len(layout.is_real)] & layout.is_real
        outs.append(F.scaled_dot_product_attention(queries, key, value, attn_mask=mask[:, None], scale=softmax_scale))
    return torch.cat(outs, dim=2)


@lru_cache(maxsize=64)
def _flex_mask(layout: TileLayout, windows: tuple[Size3, ...]) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    seen = torch.stack([blocks_seen(layout, window) for window in windows])
    is_real, size, num_blocks = layout.is_real, len(layout.is_real), len(layout.tile_of_block)

    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, query_index: torch.Tensor, key_index: torch.Tensor
    ) -> torch.Tensor:
        return seen[head, query_index // BLOCK, key_index // BLOCK] & is_real[key_index]

    lists = block_lists(layout, windows)
    partial, full = (
        torch.nn.functional.pad(blocks, (0, num_blocks - blocks.shape[-1]))[None]
        for blocks in (lists.partial_blocks, lists.full_blocks)
    )
    counts = lists.partial_count[None], lists.full_count[None]
    return BlockMask.from_kv_blocks(counts[0], partial, counts[1], full, BLOCK, mask_mod, (size, size))


@cache
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it materialises all scores; a CPU, which may lack a compiler, sees small sizes only.
    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention
