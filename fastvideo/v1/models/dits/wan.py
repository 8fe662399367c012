"""Wan2.1's diffusion transformer (arXiv 2503.20314, section 4.2; reference: diffusers ``WanTransformer3DModel``).

Legend: ``b`` batch, ``c`` latent channels, ``t h w`` latent frames, height, width, ``s`` video tokens, ``l`` text
tokens, ``n`` heads, ``d`` width (``n`` times the head size).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.attention import DistributedAttention, LocalAttention
from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from fastvideo.v1.layers.mlp import GeluMLP, TextProjection
from fastvideo.v1.layers.modulation import (
    gated_residual,
    gated_residual_norm,
    modulated_norm,
    residual_modulated_norm,
)
from fastvideo.v1.layers.norms import LayerNorm, RMSNorm
from fastvideo.v1.layers.patch_embedding import PatchEmbedding, unpatchify
from fastvideo.v1.layers.qk_norm import QKNormRotary
from fastvideo.v1.layers.rotary import RotaryTables, rotary_tables
from fastvideo.v1.layers.time_embedding import TimestepEmbedder
from fastvideo.v1.models.base import Model, ModelConfig


@dataclass(frozen=True, kw_only=True)
class WanTransformerConfig(ModelConfig):
    """The fields of ``transformer/config.json``."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def rotary_axes_dim(self) -> tuple[int, int, int]:
        """Channels of a head that rotate with t, h and w: a third each, even, the rest to t."""
        side = 2 * (self.attention_head_dim // 6)
        return self.attention_head_dim - 2 * side, side, side


class WanSelfAttention(nn.Module):
    """Attention among video tokens; queries and keys are normalised over the full width, then rotated."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width, self.head_size = config.hidden_size, config.attention_head_dim
        self.to_qkv = MergedColumnParallelLinear(width, [width, width, width])
        self.norm_qk = QKNormRotary(width, self.head_size, config.eps)
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.attn = DistributedAttention(num_heads, self.head_size)
        self.to_out = RowParallelLinear(width, width)

    def forward(self, x: torch.Tensor, rotary: RotaryTables) -> torch.Tensor:
        query, key, value = self.norm_qk(self.to_qkv(x), rotary)
        return self.to_out(self.attn(query, key, value).flatten(-2))


class WanCrossAttention(nn.Module):
    """Attention from video tokens to text tokens; the zero padding of the text is attended, as in training."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width, self.head_size = config.hidden_size, config.attention_head_dim
        self.to_q = ColumnParallelLinear(width, width)
        self.to_kv = MergedColumnParallelLinear(width, [width, width])
        self.norm_q = RMSNorm(width, config.eps)
        self.norm_k = RMSNorm(width, config.eps)
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.attn = LocalAttention(num_heads, self.head_size)
        self.to_out = RowParallelLinear(width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        key, value = self.to_kv(text).chunk(2, dim=-1)
        query, key = self.norm_q(self.to_q(x)), self.norm_k(key)
        query, key, value = (tensor.unflatten(-1, (-1, self.head_size)) for tensor in (query, key, value))
        return self.to_out(self.attn(query, key, value).flatten(-2))


class WanTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, the first and the last modulated by the timestep."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.scale_shift_table = nn.Parameter(torch.empty(1, 6, config.hidden_size), requires_grad=False)
        self.attn1 = WanSelfAttention(config)
        self.norm2 = LayerNorm(config.hidden_size, config.eps) if config.cross_attn_norm else None
        self.attn2 = WanCrossAttention(config)
        self.ffn = GeluMLP(config.hidden_size, config.ffn_dim)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rotary: RotaryTables
    ) -> torch.Tensor:
        """``[b, s, d]`` to ``[b, s, d]``; ``text`` is ``[b, l, d]``, ``modulation`` float32 ``[b, 1 or s, 6, d]``."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + modulation).unbind(dim=-2)
        y = self.attn1(modulated_norm(x, shift, scale, self.eps), rotary)
        x, y = gated_residual_norm(x, y, gate, self.norm2)
        y = self.attn2(y, text)
        x, y = residual_modulated_norm(x, y, ffn_shift, ffn_scale, self.eps)
        return gated_residual(x, self.ffn(y), ffn_gate)


class WanConditionEmbedder(nn.Module):
    """Timestep and text to the transformer's width."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedder(config.freq_dim, config.hidden_size)
        self.time_proj = ReplicatedLinear(config.hidden_size, 6 * config.hidden_size)
        self.text_embedder = TextProjection(config.text_dim, config.hidden_size)

    def forward(self, timestep: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``timestep`` ``[b]`` and ``text`` ``[b, l, text_dim]`` to the time embedding, the modulation and the text."""
        time = self.time_embedder(timestep).to(text.dtype).unsqueeze(1)
        modulation = self.time_proj(F.silu(time)).float().unflatten(-1, (6, -1))
        return time, modulation, self.text_embedder(text)


class WanTransformer3DModel(Model):
    """Predicts the flow of noised video latents from timestep and text."""

    config: WanTransformerConfig
    config_class = WanTransformerConfig
    packed_modules = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"), "norm_qk": ("norm_q", "norm_k")}
    renamed_keys = {".to_out.0.": ".to_out.", ".ffn.net.0.proj.": ".ffn.up.", ".ffn.net.2.": ".ffn.down."}
    quantized_modules = ("blocks.",)
    float32_modules = ("time_embedder", "scale_shift_table", "norm2")
    original_keys = {
        ".self_attn.": ".attn1.",
        ".cross_attn.": ".attn2.",
        ".q.": ".to_q.",
        ".k.": ".to_k.",
        ".v.": ".to_v.",
        ".o.": ".to_out.0.",
        ".k_img.": ".add_k_proj.",
        ".v_img.": ".add_v_proj.",
        ".norm_k_img.": ".norm_added_k.",
        ".ffn.0.": ".ffn.net.0.proj.",
        ".ffn.2.": ".ffn.net.2.",
        ".norm3.": ".norm2.",
        "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
        "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
        "time_projection.1.": "condition_embedder.time_proj.",
        "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
        "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
        "img_emb.proj.0.": "condition_embedder.image_embedder.norm1.",
        "img_emb.proj.1.": "condition_embedder.image_embedder.ff.net.0.proj.",
        "img_emb.proj.3.": "condition_embedder.image_embedder.ff.net.2.",
        "img_emb.proj.4.": "condition_embedder.image_embedder.norm2.",
        "head.head.": "proj_out.",
    }

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__(config)
        if config.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm={config.qk_norm!r} is not supported; Wan has 'rms_norm_across_heads'")
        out_channels = config.out_channels or config.in_channels
        self.patch_embedding = PatchEmbedding(config.in_channels, config.hidden_size, config.patch_size)
        self.condition_embedder = WanConditionEmbedder(config)
        self.blocks = nn.ModuleList(WanTransformerBlock(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, config.hidden_size), requires_grad=False)
        self.proj_out = ReplicatedLinear(config.hidden_size, out_channels * math.prod(config.patch_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The predicted flow.

        ``hidden_states`` ``[b, c, t, h, w]``, ``encoder_hidden_states`` ``[b, l, text_dim]``, ``timestep`` ``[b]`` in
        [0, 1000); returns ``[b, c, t, h, w]``. Wan2.1 text-to-video takes neither image nor embedded guidance.
        """
        assert encoder_hidden_states_image is None, "this checkpoint is not conditioned on images"
        assert guidance is None, "this model has no embedded guidance"
        grid = self._grid(hidden_states)
        rotary = rotary_tables(grid, self.config.rotary_axes_dim, 10_000.0, hidden_states.device)
        x = self.patch_embedding(hidden_states)
        time, modulation, text = self.condition_embedder(timestep, encoder_hidden_states)
        for block in self.blocks:
            x = block(x, text, modulation, rotary)
        shift, scale = (self.scale_shift_table + time).float().unsqueeze(1).chunk(2, dim=-2)
        x = modulated_norm(x, shift.squeeze(-2), scale.squeeze(-2), self.config.eps)
        return unpatchify(self.proj_out(x), grid, self.config.patch_size)

    def _grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        (t, h, w), (pt, ph, pw) = latents.shape[2:], self.config.patch_size
        return t // pt, h // ph, w // pw
