"""What an attention backend is."""

from abc import ABC, abstractmethod
from enum import StrEnum

import torch


class _Backend(StrEnum):
    """Names of the backends, as ``FASTVIDEO_ATTENTION_BACKEND`` spells them."""

    FLASH_ATTN = "FLASH_ATTN"
    TORCH_SDPA = "TORCH_SDPA"
    SLIDING_TILE_ATTN = "SLIDING_TILE_ATTN"
    FP8_ATTN = "FP8_ATTN"


class AttentionBackend(ABC):
    """One way to compute softmax(q k^T * scale) v; an instance serves one layer.

    ``layer_index`` counts the model's layers of distributed attention from 0. ``exact`` says whether it
    agrees with dense attention up to rounding; only exact backends are chosen unasked. ``joins_rings`` says whether it
    has :meth:`forward_with_lse`, of which ring attention is made. What a backend returns may depend on the context's
    step, never on its branch of guidance: where branches have the same queries, keys and values, they share it.
    """

    exact: bool = True
    joins_rings: bool = False

    def __init__(
        self, num_heads: int, head_size: int, softmax_scale: float, causal: bool, layer_index: int = 0
    ) -> None:
        self.num_heads = num_heads
        self.head_size = head_size
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.layer_index = layer_index

    @classmethod
    @abstractmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why this backend cannot serve such a layer here, in words a user can act on; None if it can."""

    @abstractmethod
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """``[b, s, n, d]`` queries over ``[b, s_k, n_k, d]`` keys and values to ``[b, s, n, d]``."""

    def forward_with_lse(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`forward` and the logarithm of each softmax's denominator, float32 ``[b, s, n]``."""
        raise NotImplementedError(f"{type(self).__name__} joins no rings")
