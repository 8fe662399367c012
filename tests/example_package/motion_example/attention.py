"""An approximate attention backend: it attends to the means of neighbouring tokens."""

import torch
import torch.nn.functional as F
from einops import rearrange

from fastvideo.v1.attention import AttentionBackend


class PooledAttention(AttentionBackend):
    """Every query sees the means of pairs of keys and of values: half the scores of dense attention."""

    exact = False

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        return None if head_size % 4 == 0 else f"it needs a head size that 4 divides, not {head_size}"

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key, value = (F.avg_pool1d(rearrange(x, "b s n d -> b (n d) s"), 2, ceil_mode=True) for x in (key, value))
        key, value = (rearrange(x, "b (n d) s -> b n s d", d=self.head_size) for x in (key, value))
        query = rearrange(query, "b s n d -> b n s d")
        out = F.scaled_dot_product_attention(query, key, value, scale=self.softmax_scale)
        return rearrange(out, "b n s d -> b s n d")
