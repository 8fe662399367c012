"""HunyuanVideo's diffusion transformer (arXiv 2412.03603, section 4.2; reference: diffusers
``HunyuanVideoTransformer3DModel``).

Two streams, video and text, each with weights of its own, meet in joint attention; then one stream of both. Padding of
the text is masked out in the reference, so it is cut off before, and no mask is needed.

Legend: ``b`` batch, ``c`` latent channels, ``t h w`` latent frames, height, width, ``s`` video tokens, ``l`` text
tokens, ``n`` heads, ``d`` width (``n`` times the head size).
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fastvideo.v1.attention import DistributedAttention, LocalAttention
from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.distributed.sequence import TokenShards
from fastvideo.v1.layers.linear import (
    MergedColumnParallelLinear,
    MergedRowParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from fastvideo.v1.layers.mlp import GeluMLP, SiluMLP, TextProjection, UpGelu
from fastvideo.v1.layers.modulation import gated_residual, modulated_norm, residual_modulated_norm
from fastvideo.v1.layers.norms import LayerNorm
from fastvideo.v1.layers.patch_embedding import PatchEmbedding
from fastvideo.v1.layers.qk_norm import HeadQKNorm, join_streams
from fastvideo.v1.layers.quantization import QuantizedRows
from fastvideo.v1.layers.rotary import RotaryTables, rotary_tables
from fastvideo.v1.layers.time_embedding import TimestepEmbedder
from fastvideo.v1.models.base import Model, ModelConfig

_EPS = 1e-6
_FREQUENCY_DIM = 256


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoTransformerConfig(ModelConfig):
    """The fields of ``transformer/config.json``."""

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    patch_size: int = 2
    patch_size_t: int = 1
    qk_norm: str = "rms_norm"
    guidance_embeds: bool = True
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, int, int] = (16, 56, 56)
    image_condition_type: str | None = None

    def __post_init__(self) -> None:
        if self.qk_norm != "rms_norm" or self.image_condition_type is not None:
            raise ValueError(
                f"qk_norm={self.qk_norm!r}, image_condition_type={self.image_condition_type!r} are not supported; "
                "HunyuanVideo text-to-video has 'rms_norm' and null"
            )

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def patch(self) -> tuple[int, int, int]:
        return self.patch_size_t, self.patch_size, self.patch_size


class Modulation(nn.Module):
    """The condition ``[b, d]`` to ``num_parts`` vectors ``[b, 1, d]``."""

    def __init__(self, hidden_size: int, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.linear = ReplicatedLinear(hidden_size, num_parts * hidden_size)

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(F.silu(condition)).unsqueeze(1).chunk(self.num_parts, dim=-1)


class TimeTextEmbedder(nn.Module):
    """Timestep, a pooled text and, if the model has it, the guidance scale to one condition ``[b, d]``."""

    def __init__(self, pooled_size: int, hidden_size: int, guidance_embeds: bool) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(_FREQUENCY_DIM, hidden_size)
        self.text_embedder = TextProjection(pooled_size, hidden_size, F.silu)
        self.guidance_embedder = TimestepEmbedder(_FREQUENCY_DIM, hidden_size) if guidance_embeds else None

    def forward(self, timestep: torch.Tensor, pooled: torch.Tensor, guidance: torch.Tensor | None) -> torch.Tensor:
        """``timestep`` and ``guidance`` ``[b]``, ``pooled`` ``[b, e]``."""
        condition = self.timestep_embedder(timestep)
        if self.guidance_embedder is not None:
            assert guidance is not None, "this model takes its guidance scale as an input"
            condition = condition + self.guidance_embedder(guidance)
        return condition + self.text_embedder(pooled)


class RefinerAttention(nn.Module):
    """Attention among text tokens ``[b, l, d]``."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        width, self.head_size = config.hidden_size, config.attention_head_dim
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.to_qkv = MergedColumnParallelLinear(width, [width, width, width])
        self.attn = LocalAttention(num_heads, self.head_size)
        self.to_out = RowParallelLinear(width, width)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(text).unflatten(-1, (3, -1, self.head_size))
        return self.to_out(self.attn(*qkv.unbind(dim=2)).flatten(-2))


class RefinerBlock(nn.Module):
    """Self-attention and feed-forward over text tokens, both gated by the condition."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, _EPS)
        self.attn = RefinerAttention(config)
        self.norm2 = LayerNorm(config.hidden_size, _EPS)
        self.ff = SiluMLP(config.hidden_size, config.mlp_size)
        self.norm_out = Modulation(config.hidden_size, 2)

    def forward(self, text: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gate, ff_gate = self.norm_out(condition)
        text = gated_residual(text, self.attn(self.norm1(text)), gate)
        return gated_residual(text, self.ff(self.norm2(text)), ff_gate)


class TokenRefiner(nn.Module):
    """The language model's hidden states ``[b, l, text_embed_dim]`` to text tokens ``[b, l, d]``."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        self.time_text_embed = TimeTextEmbedder(config.text_embed_dim, config.hidden_size, guidance_embeds=False)
        self.proj_in = ReplicatedLinear(config.text_embed_dim, config.hidden_size)
        self.blocks = nn.ModuleList(RefinerBlock(config) for _ in range(config.num_refiner_layers))

    def forward(self, text: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        condition = self.time_text_embed(timestep, text.float().mean(dim=1).to(text.dtype), None)
        text = self.proj_in(text)
        for block in self.blocks:
            text = block(text, condition)
        return text


class JointAttention(nn.Module):
    """Attention among video and text tokens, projected by weights of their own."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        width, head_size = config.hidden_size, config.attention_head_dim
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.to_qkv = MergedColumnParallelLinear(width, [width, width, width])
        self.norm_qk = HeadQKNorm(head_size, _EPS)
        self.add_qkv = MergedColumnParallelLinear(width, [width, width, width])
        self.norm_added_qk = HeadQKNorm(head_size, _EPS)
        self.attn = DistributedAttention(num_heads, head_size)
        self.to_out = RowParallelLinear(width, width)
        self.to_add_out = RowParallelLinear(width, width)

    def forward(
        self, video: torch.Tensor | QuantizedRows, text: torch.Tensor, rotary: RotaryTables, tokens: TokenShards
    ) -> tuple[torch.Tensor, torch.Tensor]:
        video_qkv, text_qkv = self.to_qkv(video), self.add_qkv(text)
        streams = [(video_qkv, self.norm_qk, rotary), (text_qkv, self.norm_added_qk, None)]
        out = self.attn(*join_streams(streams), tokens).flatten(-2)
        video_out, text_out = out.split([video_qkv.shape[1], text_qkv.shape[1]], dim=1)
        return self.to_out(video_out), self.to_add_out(text_out)


class DoubleStreamBlock(nn.Module):
    """Joint attention, then a feed-forward for each stream; every step modulated by the condition."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        self.norm1 = Modulation(config.hidden_size, 6)
        self.norm1_context = Modulation(config.hidden_size, 6)
        self.attn = JointAttention(config)
        self.ff = GeluMLP(config.hidden_size, config.mlp_size)
        self.ff_context = GeluMLP(config.hidden_size, config.mlp_size)

    def forward(
        self,
        video: torch.Tensor,
        text: torch.Tensor,
        condition: torch.Tensor,
        rotary: RotaryTables,
        tokens: TokenShards,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``video`` ``[b, s, d]``, ``text`` ``[b, l, d]``, ``condition`` ``[b, d]``."""
        shift, scale, gate, *video_ff = self.norm1(condition)
        text_shift, text_scale, text_gate, *text_ff = self.norm1_context(condition)
        in_8_bits = self.attn.to_qkv.quantized is not None
        video_out, text_out = self.attn(
            modulated_norm(video, shift, scale, _EPS, in_8_bits),
            modulated_norm(text, text_shift, text_scale, _EPS),
            rotary,
            tokens,
        )
        video = self._feed_forward(self.ff, video, video_out, gate, *video_ff)
        return video, self._feed_forward(self.ff_context, text, text_out, text_gate, *text_ff)

    @staticmethod
    def _feed_forward(
        ff: GeluMLP,
        x: torch.Tensor,
        y: torch.Tensor,
        gate: torch.Tensor,
        ff_shift: torch.Tensor,
        ff_scale: torch.Tensor,
        ff_gate: torch.Tensor,
    ) -> torch.Tensor:
        in_8_bits = ff.up.quantized is not None
        x, normed = residual_modulated_norm(x, y, ff_shift, ff_scale, _EPS, gate, in_8_bits)
        return gated_residual(x, ff(normed), ff_gate)


class SingleStreamAttention(nn.Module):
    """Attention among the joined tokens, before its output projection, which the block shares with its feed-forward."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        width, head_size = config.hidden_size, config.attention_head_dim
        num_heads = get_tp_group().shard_size(config.num_attention_heads, "num_attention_heads")
        self.to_qkv = MergedColumnParallelLinear(width, [width, width, width])
        self.norm_qk = HeadQKNorm(head_size, _EPS)
        self.attn = DistributedAttention(num_heads, head_size)

    def forward(self, x: torch.Tensor | QuantizedRows, rotary: RotaryTables, tokens: TokenShards) -> torch.Tensor:
        return self.attn(*join_streams([(self.to_qkv(x), self.norm_qk, rotary)]), tokens).flatten(-2)


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward side by side over video and text tokens ``[b, s + l, d]``."""

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__()
        self.norm = Modulation(config.hidden_size, 3)
        self.attn = SingleStreamAttention(config)
        self.proj_mlp = UpGelu(config.hidden_size, config.mlp_size)
        self.proj_out = MergedRowParallelLinear([config.hidden_size, config.mlp_size], config.hidden_size)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, rotary: RotaryTables, tokens: TokenShards
    ) -> torch.Tensor:
        shift, scale, gate = self.norm(condition)
        y = modulated_norm(x, shift, scale, _EPS, quantize=self.proj_mlp.quantized is not None)
        return gated_residual(x, self.proj_out(self.attn(y, rotary, tokens), self.proj_mlp(y)), gate)


class HunyuanVideoTransformer3DModel(Model):
    """Predicts the flow of noised video latents from timestep, text and guidance scale."""

    config: HunyuanVideoTransformerConfig
    config_class = HunyuanVideoTransformerConfig
    attends_text_padding = False
    block_lists = ("context_embedder.blocks", "transformer_blocks", "single_transformer_blocks")
    skips_steps = True
    quantized_modules = (
        "*transformer_blocks.*.attn.to_qkv",
        "*transformer_blocks.*.attn.to_out",
        "*transformer_blocks.*.ff.*",
        "single_transformer_blocks.*.proj_*",
    )
    packed_modules = {
        "to_qkv": ("to_q", "to_k", "to_v"),
        "add_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
        "norm_qk": ("norm_q", "norm_k"),
        "norm_added_qk": ("norm_added_q", "norm_added_k"),
    }
    renamed_keys = {
        "x_embedder.proj.": "x_embedder.",
        "token_refiner.refiner_blocks.": "blocks.",
        ".to_out.0.": ".to_out.",
        ".net.0.proj.": ".up.",
        ".net.2.": ".down.",
    }

    def __init__(self, config: HunyuanVideoTransformerConfig) -> None:
        super().__init__(config)
        self.x_embedder = PatchEmbedding(config.in_channels, config.hidden_size, config.patch)
        self.context_embedder = TokenRefiner(config)
        self.time_text_embed = TimeTextEmbedder(
            config.pooled_projection_dim, config.hidden_size, config.guidance_embeds
        )
        self.transformer_blocks = nn.ModuleList(DoubleStreamBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleStreamBlock(config) for _ in range(config.num_single_layers)
        )
        self.norm_out = Modulation(config.hidden_size, 2)
        self.proj_out = ReplicatedLinear(config.hidden_size, config.out_channels * math.prod(config.patch))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: list[torch.Tensor],
        timestep: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The predicted flow.

        ``hidden_states`` ``[b, c, t, h, w]``; ``encoder_hidden_states`` the text ``[b, l, text_embed_dim]`` without
        padding and the pooled text ``[b, pooled_projection_dim]``; ``timestep`` ``[b]`` in [0, 1000); ``guidance``
        ``[b]``, a thousand times the scale. Returns ``[b, c, t, h, w]``.
        """
        assert encoder_hidden_states_image is None, "this checkpoint is not conditioned on images"
        config = self.config
        text, pooled = encoder_hidden_states
        grid = self.token_grid(hidden_states)
        tables = rotary_tables(grid, config.rope_axes_dim, config.rope_theta, hidden_states.device)
        condition = self.time_text_embed(timestep, pooled, guidance)
        tokens = TokenShards(math.prod(grid), num_replicated=text.shape[1])
        rotary = tokens.take_rows(tables[0]), tokens.take_rows(tables[1])
        video = tokens.take(self.x_embedder(hidden_states))
        text = self.context_embedder(text, timestep)

        def run_blocks(video: torch.Tensor) -> torch.Tensor:
            num_video, stream = video.shape[1], text
            for block in self.transformer_blocks:
                video, stream = block(video, stream, condition, rotary, tokens)
            x = torch.cat((video, stream), dim=1)
            for block in self.single_transformer_blocks:
                x = block(x, condition, rotary, tokens)
            return x[:, :num_video].contiguous()

        if self.step_cache is None:
            video = run_blocks(video)
        else:
            video = self.step_cache.run(video, self._first_modulated(video, condition, tokens), run_blocks)
        scale, shift = self.norm_out(condition)
        out = tokens.gather(self.proj_out(modulated_norm(video, shift, scale, _EPS)))
        (t, h, _), (pt, ph, pw) = grid, config.patch
        return rearrange(out, "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)", t=t, h=h, pt=pt, ph=ph, pw=pw)

    def _first_modulated(self, video: torch.Tensor, condition: torch.Tensor, tokens: TokenShards) -> torch.Tensor:
        """What the first block's attention sees of this rank's video tokens, without their filling, ``[b, c, d]``."""
        first = cast(DoubleStreamBlock, self.transformer_blocks[0])
        shift, scale, *_ = first.norm1(condition)
        own = video[:, tokens.places(tokens.group.rank, 1, video.device)]
        return cast(torch.Tensor, modulated_norm(own, shift, scale, _EPS))

    def token_grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        (t, h, w), (pt, ph, pw) = latents.shape[2:], self.config.patch
        return t // pt, h // ph, w // pw
