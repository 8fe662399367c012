"""The two attention layers of the framework.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads, ``d`` head size.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.attention.selector import requested_backend, select_backend
from fastvideo.v1.distributed import get_sp_group


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
        self.backend = backend(self.num_heads, self.head_size, self.softmax_scale, self.causal, self.layer_index)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """``[b, s, n, d]``, ``[b, s_k, n_k, d]``, ``[b, s_k, n_k, d]`` to ``[b, s, n, d]``."""
        if self.backend is None:
            self.select(query.device, query.dtype, requested_backend())
        assert self.backend is not None
        return self.backend.forward(query, key, value)


class DistributedAttention(LocalAttention):
    """Attention among the tokens of the whole sequence, of which each rank of the sequence group holds a part.

    With one rank it is :class:`LocalAttention`. An approximate backend of a plugin, asked for, serves these layers.
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

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """``[b, s / sp, n, d]`` each, to ``[b, s / sp, n, d]``."""
        group = get_sp_group()
        assert group.size == 1, f"sequence group of size {group.size} has no transport"
        return super().forward(query, key, value)


def select_attention_backends(model: nn.Module, device: torch.device, dtype: torch.dtype, choice: str | None) -> None:
    """Chooses the backend of every attention layer in ``model``: ``choice``, else the environment's, else the best."""
    requested = requested_backend(choice)
    layers = (module for module in model.modules() if isinstance(module, DistributedAttention))
    for index, layer in enumerate(layers):
        layer.layer_index = index
    for module in model.modules():
        if isinstance(module, LocalAttention):
            module.select(device, dtype, requested)
