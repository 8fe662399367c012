"""Queries and keys between their projection and attention: normalised, then rotated.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads of this rank, ``h`` head size, ``d = n h``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.distributed.parallel_state import get_tp_group
from fastvideo.v1.layers.norms import mean_square
from fastvideo.v1.layers.rotary import RotaryTables, apply_rotary
from fastvideo.v1.layers.weight_loading import copy_exactly


class QKNormRotary(nn.Module):
    """RMS norm of queries and of keys over the full width, then rotary embedding; one Triton kernel on a GPU.

    The width is that of all ranks of the tensor group. The checkpoint's two weights are the two rows of ours.
    """

    def __init__(self, width: int, head_size: int, eps: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.eps = eps
        self._group = get_tp_group()
        self.weight = nn.Parameter(torch.ones(2, self._group.shard_size(width, "width")), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        copy_exactly(param.data[part], self._group.shard(loaded, dim=0))

    def forward(self, qkv: torch.Tensor, rotary: RotaryTables) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Packed ``[b, s, 3 d]`` to queries, keys and values ``[b, s, n, h]``; the values are a view."""
        query, key, value = qkv.chunk(3, dim=-1)
        squares = None
        if self._group.size > 1:
            squares = mean_square(qkv[..., : 2 * value.shape[-1]].unflatten(-1, (2, -1)), self._group).squeeze(-1)
        if qkv.is_cuda:
            from fastvideo.v1.layers.kernels.qk_norm import qk_norm_rotary

            query, key = qk_norm_rotary(qkv, self.weight, *rotary, self.head_size, self.eps, squares)
            query, key = (x.unflatten(-1, (-1, self.head_size)) for x in (query, key))
        else:
            query, key = (
                apply_rotary(self._norm(x, part, squares).unflatten(-1, (-1, self.head_size)), rotary)
                for part, x in enumerate((query, key))
            )
        return query, key, value.unflatten(-1, (-1, self.head_size))

    def _norm(self, x: torch.Tensor, part: int, squares: torch.Tensor | None) -> torch.Tensor:
        if squares is None:
            normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        else:
            normed = x.float() * (squares[..., part : part + 1] + self.eps).rsqrt()
        return (normed * self.weight[part]).to(x.dtype)


class HeadQKNorm(nn.Module):
    """Weights of the RMS norms of queries and keys over each head; :func:`join_streams` applies them.

    The checkpoint's two weights are the two rows of ours.
    """

    def __init__(self, head_size: int, eps: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2, head_size), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        copy_exactly(param.data[part], loaded)


# Packed queries, keys and values [b, s, 3 d] of some tokens, their norms, tables to rotate the first by.
Stream = tuple[torch.Tensor, HeadQKNorm, RotaryTables | None]


def join_streams(streams: Sequence[Stream]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values ``[b, s, n, h]`` of all streams' tokens, one stream after another.

    Queries and keys are normalised, then rotated as far as a stream's tables reach. On a GPU each stream is one pass of
    a Triton kernel that writes where attention reads.
    """
    first, norm, _ = streams[0]
    if first.is_cuda and norm.head_size & (norm.head_size - 1) == 0:
        from fastvideo.v1.layers.kernels.qk_norm import head_norm_rotary

        query, key, value = head_norm_rotary([(qkv, norm.weight, norm.eps, rotary) for qkv, norm, rotary in streams])
        query, key, value = (x.unflatten(-1, (-1, norm.head_size)) for x in (query, key, value))
    else:
        parts = zip(*(_norm_heads(*stream) for stream in streams), strict=True)
        query, key, value = (torch.cat(part, dim=1) for part in parts)
    return query, key, value


def _norm_heads(qkv: torch.Tensor, norm: HeadQKNorm, rotary: RotaryTables | None) -> list[torch.Tensor]:
    *pair, value = (x.unflatten(-1, (-1, norm.head_size)) for x in qkv.chunk(3, dim=-1))
    for part, x in enumerate(pair):
        x = (F.rms_norm(x.float(), x.shape[-1:], eps=norm.eps) * norm.weight[part]).to(x.dtype)
        if rotary is not None:
            num_rotated = len(rotary[0])
            x = torch.cat((apply_rotary(x[:, :num_rotated], rotary), x[:, num_rotated:]), dim=1)
        pair[part] = x
    return [*pair, value]
