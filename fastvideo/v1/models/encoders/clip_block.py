"""The transformer that CLIP's two towers share (arXiv 2103.00020); query, key and value are one matrix product.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads on this rank, ``d`` head size, ``i`` width. Modules are named as in
transformers' ``CLIPEncoder``, the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from fastvideo.v1.layers.norms import LayerNorm
from fastvideo.v1.models.base import ModelConfig


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(1.702 x)``, the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}

# Merged layers of a block, and names in front of every key: those of transformers 4, which transformers 5 leaves out.
CLIP_PACKED_MODULES: dict[str, tuple[str, ...]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
CLIP_RENAMED_KEYS = {"text_model.": "", "vision_model.": ""}


@dataclass(frozen=True, kw_only=True)
class CLIPBlockConfig(ModelConfig):
    """What both towers' ``config.json`` have; the defaults are those that files leave out."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is not supported; CLIP has {', '.join(_ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )


class CLIPAttention(nn.Module):
    """Self-attention: ``[b s i] -> [b s i]``."""

    def __init__(self, config: CLIPBlockConfig) -> None:
        super().__init__()
        self.num_local_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.qkv_proj = MergedColumnParallelLinear(config.hidden_size, [config.hidden_size] * 3)
        self.out_proj = RowParallelLinear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        query, key, value = rearrange(self.qkv_proj(x), "b s (k n d) -> k b n s d", k=3, n=self.num_local_heads)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.out_proj(rearrange(x, "b n s d -> b s (n d)"))


class CLIPMLP(nn.Module):
    """Two linear layers with the config's activation between: ``[b s i] -> [b s i]``."""

    def __init__(self, config: CLIPBlockConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = ColumnParallelLinear(config.hidden_size, config.intermediate_size)
        self.fc2 = RowParallelLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPBlock(nn.Module):
    """Attention and MLP, each with a norm before and a residual around it: ``[b s i] -> [b s i]``."""

    def __init__(self, config: CLIPBlockConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), visible)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The blocks of a tower: ``[b s i] -> [b s i]``."""

    def __init__(self, config: CLIPBlockConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([CLIPBlock(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None, skip_layers: int = 0) -> torch.Tensor:
        """``visible`` is a bool mask of queries by keys, ``[b or 1, 1, s, s]``; the last ``skip_layers`` do not run."""
        for block in self.layers[: len(self.layers) - skip_layers]:
            x = block(x, visible)
        return x
