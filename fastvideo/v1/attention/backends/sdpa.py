"""PyTorch's scaled dot product attention: on every device, in every dtype."""

import torch
import torch.nn.functional as F
from einops import rearrange

from fastvideo.v1.attention.backends.abstract import AttentionBackend


class SDPABackend(AttentionBackend):
    """``F.scaled_dot_product_attention``; on Hopper its cuDNN kernel is chosen by PyTorch where it wins."""

    joins_rings = True

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        return None

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (rearrange(x, "b s n d -> b n s d") for x in (query, key, value))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=self.causal,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return rearrange(out, "b n s d -> b s n d")

    def forward_with_lse(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (rearrange(x, "b s n d -> b n s d") for x in (query, key, value))
        kernels = torch.ops.aten
        if not query.is_cuda:
            out, lse = kernels._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, is_causal=self.causal, scale=self.softmax_scale
            )
        elif query.dtype == torch.float32:
            out, lse, *_ = kernels._scaled_dot_product_efficient_attention(
                query, key, value, None, compute_log_sumexp=True, is_causal=self.causal, scale=self.softmax_scale
            )
        else:
            out, lse, *_ = kernels._scaled_dot_product_flash_attention(
                query, key, value, is_causal=self.causal, scale=self.softmax_scale
            )
        # Kernels may round the number of queries up.
        return rearrange(out, "b n s d -> b s n d"), rearrange(lse[..., : query.shape[2]], "b n s -> b s n")
