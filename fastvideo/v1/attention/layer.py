"""The two attention layers of the framework.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads, ``d`` head size.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.attention.patterns import AttentionPattern
from fastvideo.v1.attention.ring import ring_attention
from fastvideo.v1.attention.selector import requested_backend, select_backend
from fastvideo.v1.distributed.communication import all_gather, all_to_all, broadcast
from fastvideo.v1.distributed.parallel_state import get_ring_group, get_ulysses_group
from fastvideo.v1.distributed.sequence import TokenShards


class LocalAttention(nn.Module):
    """Attention among the tokens that this rank holds; cross-attention to replicated tokens, too.

    The backend is chosen when weights are loaded (:func:`select_attention_backends`) or at the first call. A plugin's
    backend may serve it if exact, or if ``supported_attention_backends`` names it.
    """

    takes_approximate: ClassVar[bool] = False

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        causal: bool = False,
        softmax_scale: float | None = None,
        supported_attention_backends: Sequence[str] = (_Backend.FLASH_ATTN, _Backend.TORCH_SDPA),
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.causal = causal
        self.softmax_scale = head_size**-0.5 if softmax_scale is None else softmax_scale
        self.supported_attention_backends = tuple(supported_attention_backends)
        self.layer_index = 0
        self.backend: AttentionBackend | None = None

    def select(self, device: torch.device, dtype: torch.dtype, requested: str | None) -> None:
        """Chooses the backend for tensors of ``dtype`` on ``device``; raises if ``requested`` cannot be had."""
        backend = select_backend(
            self.head_size, dtype, device, self.supported_attention_backends, requested, self.takes_approximate
        )
        self.backend = backend(self._heads_at_work(), self.head_size, self.softmax_scale, self.causal, self.layer_index)

    def _heads_at_work(self) -> int:
        return self.num_heads

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: AttentionPattern | None = None
    ) -> torch.Tensor:
        """``[b, s, n, d]``, ``[b, s_k, n_k, d]``, ``[b, s_k, n_k, d]`` to ``[b, s, n, d]``.

        With a ``pattern`` a query sees some keys only. Raises ``ValueError`` for one in a causal layer, or over an
        approximate backend.
        """
        if self.backend is None:
            self.select(query.device, query.dtype, requested_backend())
        assert self.backend is not None
        if pattern is None:
            return self.backend.forward(query, key, value)
        if self.causal or not self.backend.exact:
            why = "causal attention" if self.causal else f"{type(self.backend).__name__} is approximate and"
            raise ValueError(f"{why} has no patterns; leave out {pattern}")
        return pattern.attend(self.backend, query, key, value)


class DistributedAttention(LocalAttention):
    """Attention among the tokens of the whole sequence, of which each rank of the sequence group holds a part.

    Ranks of the ulysses group exchange tokens for heads (DeepSpeed-Ulysses, arXiv 2309.14509), the keys of all tokens
    go round the ring group, and both together are USP (arXiv 2405.07719). With one rank it is :class:`LocalAttention`.
    An approximate backend of a plugin, asked for, serves these layers. Raises ``ValueError`` for heads that the ulysses
    group does not divide, and for a causal layer in a ring.
    """

    takes_approximate = True

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        causal: bool = False,
        softmax_scale: float | None = None,
        supported_attention_backends: Sequence[str] = tuple(_Backend),
    ) -> None:
        super().__init__(num_heads, head_size, causal, softmax_scale, supported_attention_backends)
        self._ulysses, self._ring = get_ulysses_group(), get_ring_group()
        self._ulysses.shard_size(num_heads, "num_heads")
        if causal and self._ring.size > 1:
            raise ValueError(f"causal attention cannot go by a ring of {self._ring.size}; set ring_size to 1")

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: TokenShards | None = None,
        pattern: AttentionPattern | None = None,
    ) -> torch.Tensor:
        """``[b, s / sp, n, d]`` each, to ``[b, s / sp, n, d]``; a ``pattern`` is one of the whole sequence.

        ``tokens`` says how the sequence lies on the ranks where their parts are filled up, or have tokens after them
        that all ranks hold; without it every rank's are tokens of its own.
        """
        num_ranks = self._ulysses.size * self._ring.size
        if num_ranks == 1:
            return super().forward(query, key, value, pattern)
        if pattern is not None and self._ring.size > 1:
            raise ValueError(f"{pattern} cannot go by a ring of {self._ring.size}; set ring_size to 1")
        tokens = tokens or TokenShards(num_ranks * query.shape[1])
        part_size = query.shape[1] - tokens.num_replicated
        if self._ring.size == 1:
            found = self._attend(query, key, value, tokens, part_size, pattern)
        else:
            found = self._attend_by_ring(query, key, value, tokens, part_size)
        if self._ulysses.size == 1:
            return found
        part, replicated = found.split([found.shape[1] - tokens.num_replicated, tokens.num_replicated], dim=1)
        out = torch.empty_like(query)
        all_to_all(part, scatter_dim=1, gather_dim=2, group=self._ulysses, out=out[:, :part_size])
        if tokens.num_replicated:
            out[:, part_size:] = all_gather(replicated, dim=2, group=self._ulysses)
        return out

    def select(self, device: torch.device, dtype: torch.dtype, requested: str | None) -> None:
        super().select(device, dtype, requested)
        if self._ring.size > 1 and self.backend and not self.backend.joins_rings:
            raise ValueError(f"{type(self.backend).__name__} cannot take part in ring attention; set ring_size to 1")

    def _heads_at_work(self) -> int:
        return self.num_heads // self._ulysses.size

    def _with_fewer_heads(self, x: torch.Tensor, part_size: int, rest_at: int) -> torch.Tensor:
        """This rank's heads ``n / u`` of ``x`` ``[b, s / sp, n, d]``: of the tokens of all ranks of the ulysses group,
        and from ``rest_at`` on of replicated ones, which may cover filling.
        """
        ulysses = self._ulysses
        if ulysses.size == 1:
            return x
        b, size, n, d = x.shape
        num_parts, end = ulysses.size * part_size, rest_at + size - part_size
        out = x.new_empty(b, max(num_parts, end), n // ulysses.size, d)
        all_to_all(x[:, :part_size], scatter_dim=2, gather_dim=1, group=ulysses, out=out[:, :num_parts])
        out[:, rest_at:end] = ulysses.shard(x[:, part_size:], dim=2)
        return out

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: TokenShards,
        part_size: int,
        pattern: AttentionPattern | None,
    ) -> torch.Tensor:
        """Attention among the whole sequence in its own order, so that any backend can serve; the result lies as
        :meth:`_with_fewer_heads` would have it without filling to cover.
        """
        num_parts, num_rest = self._ulysses.size * part_size, tokens.num_replicated
        places = tokens.places(0, self._ulysses.size, query.device)
        rest_at = places.stop if isinstance(places, slice) else num_parts
        query, key, value = (self._with_fewer_heads(x, part_size, rest_at) for x in (query, key, value))
        if isinstance(places, slice):
            query, key, value = (x[:, : rest_at + num_rest] for x in (query, key, value))
        else:
            order = torch.cat((places, torch.arange(num_parts, num_parts + num_rest, device=places.device)))
            query, key, value = (x[:, order] for x in (query, key, value))
        found = super().forward(query, key, value, pattern)
        num_real = found.shape[1] - num_rest
        if isinstance(places, slice) and num_real == num_parts:
            return found
        out = found.new_zeros(len(found), num_parts + num_rest, *found.shape[2:])
        out[:, places] = found[:, :num_real]
        out[:, num_parts:] = found[:, num_real:]
        return out

    def _attend_by_ring(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tokens: TokenShards, part_size: int
    ) -> torch.Tensor:
        ulysses, num_parts = self._ulysses.size, self._ulysses.size * part_size
        query, key, value = (self._with_fewer_heads(x, part_size, num_parts) for x in (query, key, value))
        if self.backend is None:
            self.select(query.device, query.dtype, requested_backend())
        assert self.backend is not None
        out = ring_attention(
            self.backend,
            query,
            key,
            value,
            tokens.num_replicated,
            lambda rank: tokens.places(rank * ulysses, ulysses, query.device),
            self._ring,
        )
        if tokens.num_replicated:
            # Each rank adds up the ring's keys in an order of its own; what all ranks hold shall not drift apart.
            out[:, num_parts:] = broadcast(out[:, num_parts:], self._ring)
        return out


def select_attention_backends(model: nn.Module, device: torch.device, dtype: torch.dtype, choice: str | None) -> None:
    """Chooses the backend of every attention layer in ``model``: ``choice``, else the environment's, else the best."""
    requested = requested_backend(choice)
    layers = (module for module in model.modules() if isinstance(module, DistributedAttention))
    for index, layer in enumerate(layers):
        layer.layer_index = index
    for module in model.modules():
        if isinstance(module, LocalAttention):
            module.select(device, dtype, requested)
