"""Llama as a text encoder (arXiv 2302.13971, 2307.09288; reference: transformers ``LlamaModel``).

Legend: ``b`` batch, ``s`` tokens, ``n`` query heads and ``m`` key heads on this rank, ``g = n / m``, ``d`` head size,
``i`` width. Query, key and value are one matrix product, and so are the two inputs of the gate.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from fastvideo.v1.layers.norms import RMSNorm
from fastvideo.v1.layers.rotary import RotaryTables
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.models.base import Model, ModelConfig
from fastvideo.v1.models.encoders.causal_mask import causal_mask


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """``text_encoder/config.json``, as transformers 4 writes it (``rope_theta``) or 5 (``rope_parameters``)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: one for each query head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={self.hidden_act!r} is not supported; Llama has 'silu'")
        for name in ("rope_parameters", "rope_scaling"):
            rope = getattr(self, name) or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise ValueError(f"{name} asks for rope_type {kind!r}, which is not supported; there is 'default'")

    @property
    def theta(self) -> float:
        """Base of the rotary frequencies."""
        return (self.rope_parameters or {}).get("rope_theta", self.rope_theta)

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def num_key_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads


@lru_cache(maxsize=32)
def rotary_tables(length: int, head_size: int, theta: float, device: torch.device) -> RotaryTables:
    """Cosines and sines, float32 ``[s, d / 2]`` each; computed in float64 on the CPU, kept for recurring lengths."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device="cpu") / head_size
    angles = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), theta**-exponents)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def rotate_halves(x: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Rotates ``[b n s d]``, channel ``j`` with channel ``j + d / 2``; in float32, the input's dtype returned."""
    cos, sin = tables
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Attention in which ``g`` query heads share a key head: ``[b s i] -> [b s i]``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        group = get_tp_group()
        self.head_size = config.head_size
        # Whole heads to each rank: a rank's query heads are then those of its key heads, of which some ranks may share.
        self.num_heads = group.shard_size(config.num_attention_heads, "num_attention_heads")
        sharing = max(1, group.size // config.num_key_heads)
        self.num_key_heads = group.shard_size(config.num_key_heads * sharing, "num_key_value_heads")
        width, key_width = (count * config.head_size for count in (config.num_attention_heads, config.num_key_heads))
        self.qkv_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [width, key_width, key_width],
            bias=config.attention_bias,
            replicas=[1, sharing, sharing],
        )
        self.o_proj = RowParallelLinear(width, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: torch.Tensor, rotary: RotaryTables, visible: torch.Tensor) -> torch.Tensor:
        heads = rearrange(self.qkv_proj(x), "b s (n d) -> b n s d", d=self.head_size)
        query, key, value = heads.split([self.num_heads, self.num_key_heads, self.num_key_heads], dim=1)
        query, key = rotate_halves(query, rotary), rotate_halves(key, rotary)
        # Written out, since no fast kernel takes grouped heads together with a mask.
        key, value = (repeat(x, "b m s d -> b (m g) s d", g=self.num_heads // self.num_key_heads) for x in (key, value))
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.o_proj(rearrange(x, "b n s d -> b s (n d)"))


class GatedFeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): ``down(silu(gate x) * up x)``, ``[b s i] -> [b s i]``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        sizes = [config.intermediate_size] * 2
        self.gate_up_proj = MergedColumnParallelLinear(config.hidden_size, sizes, bias=config.mlp_bias)
        self.down_proj = RowParallelLinear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each with a norm before and a residual around it: ``[b s i] -> [b s i]``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedFeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, rotary: RotaryTables, visible: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(Model):
    """Token ids to hidden states of any depth."""

    config_class: ClassVar[type[ModelConfig]] = LlamaConfig
    packed_modules: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    renamed_keys: ClassVar[dict[str, str]] = {"model.": ""}  # in front of every key that a language model saved
    ignored_keys: ClassVar[tuple[str, ...]] = ("lm_head.weight", "rotary_emb.inv_freq")
    block_lists: ClassVar[tuple[str, ...]] = ("layers",)
    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, skip_layers: int = 0
    ) -> torch.Tensor:
        """Token ids ``[b s]`` and a mask ``[b s]`` (0: padding) to the hidden states ``[b s i]`` before the last
        ``skip_layers`` layers, which do not run: transformers' ``hidden_states[-(skip_layers + 1)]``.

        The last layer's states, and no others, go through the final norm.
        """
        rotary = rotary_tables(input_ids.shape[1], self.config.head_size, self.config.theta, input_ids.device)
        visible = causal_mask(input_ids, attention_mask)
        x = self.embed_tokens(input_ids)
        for layer in self.layers[: len(self.layers) - skip_layers]:
            x = layer(x, rotary, visible)
        return x if skip_layers else self.norm(x)
