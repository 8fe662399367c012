"""The diffusion transformer of Wan2.1 and Wan2.2 (arXiv 2503.20314, section 4.2; reference: diffusers
``WanTransformer3DModel``).

Legend: ``b`` batch, ``c`` latent channels, ``t h w`` latent frames, height, width, ``s`` video tokens, ``l`` text
tokens, ``i`` image tokens, ``e`` width of image embeddings, ``n`` heads, ``d`` width (``n`` times the head size). The
tokens of a sample may be ``g`` equal runs (its frames, say) with a timestep each: then ``r = b g``, else ``r = b``.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.attention import DistributedAttention, LocalAttention
from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.distributed.sequence import TokenShards
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
from fastvideo.v1.layers.norms import ColumnParallelRMSNorm, LayerNorm
from fastvideo.v1.layers.patch_embedding import PatchEmbedding, unpatchify
from fastvideo.v1.layers.qk_norm import QKNormRotary
from fastvideo.v1.layers.quantization import QuantizedRows
from fastvideo.v1.layers.rotary import RotaryTables, rotary_tables
from fastvideo.v1.layers.time_embedding import TimestepEmbedder
from fastvideo.v1.models.base import Model, ModelConfig
from fastvideo.v1.models.dits.kept_states import NothingKept


@dataclass(frozen=True, kw_only=True)
class WanTransformerConfig(ModelConfig):
    """The fields of ``transformer/config.json``."""

    unread_keys: ClassVar[tuple[str, ...]] = ("rope_max_seq_len",)  # positions are computed as far as they are needed

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
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        if self.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm={self.qk_norm!r} is not supported; Wan has 'rms_norm_across_heads'")
        if self.pos_embed_seq_len is not None:
            raise ValueError(
                f"pos_embed_seq_len={self.pos_embed_seq_len}: a model of first and last frame is not supported, since "
                "a request has one image; take an image-to-video checkpoint"
            )

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

    def forward(self, x: torch.Tensor | QuantizedRows, rotary: RotaryTables, tokens: TokenShards) -> torch.Tensor:
        query, key, value = self.norm_qk(self.to_qkv(x), rotary)
        return self.to_out(self.attn(query, key, value, tokens).flatten(-2))


class WanCrossAttention(nn.Module):
    """Attention from video tokens to text tokens and, in image-to-video models, beside it to image tokens.

    The zero padding of the text is attended, as in training.
    """

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width, self.head_size = config.hidden_size, config.attention_head_dim
        self.to_q = ColumnParallelLinear(width, width)
        self.to_kv = MergedColumnParallelLinear(width, [width, width])
        self.norm_q = ColumnParallelRMSNorm(width, config.eps)
        self.norm_k = ColumnParallelRMSNorm(width, config.eps)
        if config.added_kv_proj_dim is not None:
            self.add_kv_proj = MergedColumnParallelLinear(config.added_kv_proj_dim, [width, width])
            self.norm_added_k = ColumnParallelRMSNorm(width, config.eps)
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.attn = LocalAttention(num_heads, self.head_size)
        self.to_out = RowParallelLinear(width, width)

    def forward(
        self, x: torch.Tensor | QuantizedRows, text: torch.Tensor, image: torch.Tensor | None, kept: NothingKept
    ) -> torch.Tensor:
        query = self.norm_q(self.to_q(x)).unflatten(-1, (-1, self.head_size))
        text_key, text_value, *image_pair = kept.of_batch(self, (text, image), lambda: self._keys_values(text, image))
        y = self.attn(query, text_key, text_value).flatten(-2)
        if image is not None:
            y = y + self.attn(query, *image_pair).flatten(-2)
        return self.to_out(y)

    def _keys_values(self, text: torch.Tensor, image: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Keys and values ``[b, l, n, d]`` of the text and then, if there is one, ``[b, i, n, d]`` of the image."""
        pairs = [(self.to_kv(text), self.norm_k)]
        if image is not None:
            pairs.append((self.add_kv_proj(image), self.norm_added_k))
        tensors = []
        for key_value, norm in pairs:
            key, value = key_value.chunk(2, dim=-1)
            tensors += [norm(key), value.contiguous()]  # a view would keep the keys before their norm, too
        return tuple(tensor.unflatten(-1, (-1, self.head_size)) for tensor in tensors)


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
        self,
        x: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor | None,
        modulation: torch.Tensor,
        rotary: RotaryTables,
        tokens: TokenShards,
        kept: NothingKept,
    ) -> torch.Tensor:
        """``[r, s / g, d]`` to the same; ``text`` ``[b, l, d]``, ``image`` ``[b, i, d]``, ``modulation`` float32
        ``[r, 6, d]``.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + modulation).chunk(6, dim=1)
        samples = (len(text), -1, x.shape[-1])  # attention is among all tokens of a sample
        in_8_bits = self.ffn.up.quantized is not None

        def attend() -> tuple[torch.Tensor]:
            y = modulated_norm(x, shift, scale, self.eps, in_8_bits)
            return (self.attn1(y.view(samples), rotary, tokens).view_as(x),)

        (attended,) = kept.of_step(self.attn1, (x, modulation), attend)
        x, y = gated_residual_norm(x, attended, gate, self.norm2, in_8_bits)
        y = self.attn2(y.view(samples), text, image, kept).view_as(x)
        x, y = residual_modulated_norm(x, y, ffn_shift, ffn_scale, self.eps, quantize=in_8_bits)
        return gated_residual(x, self.ffn(y), ffn_gate)


class WanImageEmbedding(nn.Module):
    """Image embeddings to the transformer's width: ``[b, i, e]`` to ``[b, i, d]``."""

    def __init__(self, image_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(image_dim, eps=1e-5)
        self.up = ReplicatedLinear(image_dim, image_dim)
        self.down = ReplicatedLinear(image_dim, hidden_size)
        self.norm2 = LayerNorm(hidden_size, eps=1e-5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.down(F.gelu(self.up(self.norm1(image)))))


class WanConditionEmbedder(nn.Module):
    """Timestep, text and image to the transformer's width."""

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.time_embedder = TimestepEmbedder(config.freq_dim, width)
        self.time_proj = ReplicatedLinear(width, 6 * width)
        self.text_embedder = TextProjection(config.text_dim, width)
        if config.image_dim is not None:
            self.image_embedder = WanImageEmbedding(config.image_dim, width)

    def embed_time(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """``timestep`` ``[r]`` to the time embedding ``[r, 1, d]`` of ``dtype`` and the modulation float32
        ``[r, 6, d]``.
        """
        time = self.time_embedder(timestep).to(dtype)
        return time.unsqueeze(1), self.time_proj(F.silu(time)).float().unflatten(-1, (6, -1))

    def embed_texts(self, text: torch.Tensor, image: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``text`` ``[b, l, text_dim]`` and ``image`` ``[b, i, e]`` to ``[b, l, d]`` and ``[b, i, d]``."""
        return self.text_embedder(text), None if image is None else self.image_embedder(image)


class WanTransformer3DModel(Model):
    """Predicts the flow of noised video latents from timestep, text and, in image-to-video models, an image."""

    config: WanTransformerConfig
    config_class = WanTransformerConfig
    packed_modules = {
        "to_qkv": ("to_q", "to_k", "to_v"),
        "to_kv": ("to_k", "to_v"),
        "add_kv_proj": ("add_k_proj", "add_v_proj"),
        "norm_qk": ("norm_q", "norm_k"),
    }
    renamed_keys = {
        ".to_out.0.": ".to_out.",
        ".ffn.net.0.proj.": ".ffn.up.",
        ".ffn.net.2.": ".ffn.down.",
        ".ff.net.0.proj.": ".up.",
        ".ff.net.2.": ".down.",
    }
    ignored_keys = ("norm_added_q.weight",)
    refused_keys = {
        "to_gate_compress": "the gate of video sparse attention (VSA), which is not supported, and without which this "
        "is another model; take a checkpoint of full attention"
    }
    quantized_modules = ("blocks.*.attn?.to_qkv", "blocks.*.attn?.to_q", "blocks.*.attn?.to_out", "blocks.*.ffn.*")
    block_lists = ("blocks",)
    skips_steps = True
    float32_modules = ("time_embedder", "scale_shift_table", "norm1", "norm2")
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
        "head.modulation": "scale_shift_table",
        ".modulation": ".scale_shift_table",
    }

    def __init__(self, config: WanTransformerConfig) -> None:
        super().__init__(config)
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
        [0, 1000), or ``[b, g]`` with one for each of ``g`` equal runs of tokens (``g`` latent frames, or all tokens);
        ``encoder_hidden_states_image`` ``[b, i, e]`` for a model with an image embedder, and for no other. Returns
        ``[b, out_channels, t, h, w]``.
        """
        has_image = encoder_hidden_states_image is not None
        assert has_image == (self.config.image_dim is not None), "image embeddings are for models with image_dim"
        assert guidance is None, "this model has no embedded guidance"
        grid = self.token_grid(hidden_states)
        tables = rotary_tables(grid, self.config.rotary_axes_dim, 10_000.0, hidden_states.device)
        embedder, kept = self.condition_embedder, self.kept_states
        texts = encoder_hidden_states, encoder_hidden_states_image
        text, image = kept.of_batch(embedder, texts, lambda: embedder.embed_texts(*texts))
        dtype = encoder_hidden_states.dtype
        time, modulation = kept.of_step(embedder, (timestep,), lambda: embedder.embed_time(timestep.flatten(), dtype))
        tokens = TokenShards(math.prod(grid), num_runs=len(time) // len(text))

        def embed() -> tuple[torch.Tensor]:
            x = self.patch_embedding(hidden_states)
            return (tokens.take(x.view(len(time), -1, x.shape[-1])),)

        (x,) = kept.of_step(self.patch_embedding, (hidden_states,), embed)
        rotary = tokens.take_rows(tables[0]), tokens.take_rows(tables[1])

        def run_blocks(x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x, text, image, modulation, rotary, tokens, kept)
            return x

        x = run_blocks(x) if self.step_cache is None else self.step_cache.run(x, modulation, run_blocks)
        shift, scale = (self.scale_shift_table + time).float().chunk(2, dim=1)
        x = tokens.gather(self.proj_out(modulated_norm(x, shift, scale, self.config.eps)))
        return unpatchify(x.reshape(len(text), -1, x.shape[-1]), grid, self.config.patch_size)

    def token_grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        (t, h, w), (pt, ph, pw) = latents.shape[2:], self.config.patch_size
        return t // pt, h // ph, w // pw
