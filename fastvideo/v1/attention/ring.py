"""Ring attention (arXiv 2310.01889): keys and values go round the ranks, and partial results are merged by their
log-sum-exp. PyTorch's own context parallelism knows neither parts of unequal length nor tokens that all ranks hold.

Legend: ``b`` batch, ``s`` queries, ``k`` keys of a rank, ``n`` heads, ``d`` head size.
"""

from collections.abc import Callable

import torch

from fastvideo.v1.attention.backends.abstract import AttentionBackend
from fastvideo.v1.distributed.communication import start_shift
from fastvideo.v1.distributed.group import ParallelGroup


def ring_attention(
    backend: AttentionBackend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    replicated: tuple[torch.Tensor, torch.Tensor],
    real: Callable[[int], slice | torch.Tensor],
    group: ParallelGroup,
) -> torch.Tensor:
    """Queries ``[b, s, n, d]`` over all ranks' keys and values ``[b, k, n, d]``, to ``[b, s, n, d]``.

    ``replicated`` are the keys and values that every rank holds, counted once; ``real(rank)`` says which of the keys
    of ``rank`` are no filling.
    """
    merged = _Merged(query)
    block = torch.stack((key, value))
    for step in range(group.size):
        is_last = step == group.size - 1
        following, transfers = (block, []) if is_last else start_shift(block, group)
        places = real((group.rank - step) % group.size)
        pair = tuple(x[:, places] for x in block)
        if step == 0:
            pair = tuple(torch.cat(parts, dim=1) for parts in zip(pair, replicated, strict=True))
        if pair[0].shape[1]:
            merged.add(*backend.forward_with_lse(query, *pair))
        for transfer in transfers:
            transfer.wait()
        block = following
    return merged.out.to(query.dtype)


class _Merged:
    """Attention over the keys seen so far, float32, and the logarithm of its softmax's denominator."""

    def __init__(self, query: torch.Tensor) -> None:
        self.out = torch.zeros_like(query, dtype=torch.float32)
        self.lse = query.new_full(query.shape[:-1], -torch.inf, dtype=torch.float32)

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """``out`` ``[b, s, n, d]`` and ``lse`` ``[b, s, n]`` over further keys."""
        total = torch.logaddexp(self.lse, lse)
        self.out.mul_((self.lse - total).exp_()[..., None]).add_(out * (lse - total).exp_()[..., None])
        self.lse = total
