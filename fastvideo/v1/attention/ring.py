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
    num_replicated: int,
    real: Callable[[int], slice | torch.Tensor],
    group: ParallelGroup,
) -> torch.Tensor:
    """Queries ``[b, s, n, d]`` over all ranks' keys and values ``[b, k, n, d]``, to ``[b, s, n, d]``.

    The last ``num_replicated`` keys and values every rank holds, and they count once; ``real(rank)`` says which of the
    others of ``rank`` are no filling.
    """
    merged: _Merged | None = None
    mine, size = (key, value), key.shape[1] - num_replicated
    block = torch.stack([x[:, :size] for x in mine])
    for step in range(group.size):
        is_last = step == group.size - 1
        following, transfers = (block, []) if is_last else start_shift(block, group)
        places = real((group.rank - step) % group.size)
        if step == 0:
            pair = tuple(_pick(x, places, num_replicated) for x in mine)
        else:
            pair = tuple(x[:, places] for x in block)
        if pair[0].shape[1]:
            part = backend.forward_with_lse(query, *pair)
            merged = _Merged(*part) if merged is None else merged.add(*part)
        for transfer in transfers:
            transfer.wait()
        block = following
    assert merged is not None, "no rank has a key"
    return merged.out.to(query.dtype)


def _pick(x: torch.Tensor, places: slice | torch.Tensor, num_replicated: int) -> torch.Tensor:
    """The tokens of ``x`` at ``places`` and its last, without a copy where that is all of them."""
    size = x.shape[1] - num_replicated
    if isinstance(places, slice) and places.stop == size:
        return x
    return torch.cat((x[:, :size][:, places], x[:, size:]), dim=1)


class _Merged:
    """Attention over the keys seen so far, ``[b, s, n, d]`` in float32, and the logarithm of its softmax's denominator,
    ``[b, s, n]``.
    """

    def __init__(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        self.out, self.lse = out.float(), lse

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> "_Merged":
        """Also over further keys."""
        self.out.lerp_(out.float(), torch.sigmoid(lse - self.lse)[..., None])
        self.lse = torch.logaddexp(self.lse, lse)
        return self
