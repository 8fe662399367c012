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
        parts, replicated = zip(*(self._with_fewer_heads(x, part_size) for x in (query, key, value)), strict=True)
        if self._ring.size == 1:
            out, replicated_out = self._attend(parts, replicated, tokens, pattern)
        else:
            out, replicated_out = self._attend_by_ring(parts, replicated, tokens)
        out = all_to_all(out, scatter_dim=1, gather_dim=2, group=self._ulysses)
        if not tokens.num_replicated:
            return out
        return torch.cat((out, all_gather(replicated_out, dim=2, group=self._ulysses)), dim=1)

    def select(self, device: torch.device, dtype: torch.dtype, requested: str | None) -> None:
        super().select(device, dtype, requested)
        if self._ring.size > 1 and self.backend and not self.backend.joins_rings:
            raise ValueError(f"{type(self.backend).__name__} cannot take part in ring attention; set ring_size to 1")

    def _heads_at_work(self) -> int:
        return self.num_heads // self._ulysses.size

    def _with_fewer_heads(self, x: torch.Tensor, part_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's heads ``n / u``: of the tokens of all ranks of the ulysses group, and of replicated ones."""
        part, replicated = x.split([part_size, x.shape[1] - part_size], dim=1)
        part = all_to_all(part, scatter_dim=2, gather_dim=1, group=self._ulysses)
        return part, self._ulysses.shard(replicated, dim=2)

    def _attend(
        self,
        parts: Sequence[torch.Tensor],
        replicated: Sequence[torch.Tensor],
        tokens: TokenShards,
        pattern: AttentionPattern | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention among the whole sequence in its own order, so that any backend can serve."""
        places = tokens.places(0, self._ulysses.size, parts[0].device)
        if isinstance(places, slice) and places.stop == parts[0].shape[1] and not tokens.num_replicated:
            query, key, value = parts
            return super().forward(query, key, value, pattern), replicated[0]
        query, key, value = (
            torch.cat((part[:, places], rest), dim=1) for part, rest in zip(parts, replicated, strict=True)
        )
        found = super().forward(query, key, value, pattern)
        found, replicated_out = found.split([found.shape[1] - tokens.num_replicated, tokens.num_replicated], dim=1)
        out = torch.zeros_like(parts[0])
        out[:, places] = found
        return out, replicated_out

    def _attend_by_ring(
        self, parts: Sequence[torch.Tensor], replicated: Sequence[torch.Tensor], tokens: TokenShards
    ) -> tuple[torch.Tensor, torch.Tensor]:
        part_query, part_key, part_value = parts
        rest_query, rest_key, rest_value = replicated
        query = torch.cat((part_query, rest_query), dim=1)
        if self.backend is None:
            self.select(query.device, query.dtype, requested_backend())
        assert self.backend is not None
        ulysses = self._ulysses.size
        out = ring_attention(
            self.backend,
            query,
            part_key,
            part_value,
            (rest_key, rest_value),
            lambda rank: tokens.places(rank * ulysses, ulysses, query.device),
            self._ring,
        )
        part_out, rest_out = out.split([part_query.shape[1], rest_query.shape[1]], dim=1)
        # Each rank adds up the ring's keys in an order of its own; what all ranks hold shall not drift apart.
        return part_out, broadcast(rest_out, self._ring) if tokens.num_replicated else rest_out


def select_attention_backends(model: nn.Module, device: torch.device, dtype: torch.dtype, choice: str | None) -> None:
    """Chooses the backend of every attention layer in ``model``: ``choice``, else the environment's, else the best."""
    requested = requested_backend(choice)
    layers = (module for module in model.modules() if isinstance(module, DistributedAttention))
    for index, layer in enumerate(layers):
        layer.layer_index = index
    for module in model.modules():
        if isinstance(module, LocalAttention):
            module.select(device, dtype, requested)
