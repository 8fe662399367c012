"""The encoder of UMT5 (arXiv 2304.09151): T5 v1.1 with its own relative position bias in every layer.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads on this rank, ``d`` head size. Modules are named as in transformers'
``UMT5EncoderModel``, the reference; query, key and value are one matrix product, and so are the two inputs of the gate.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from fastvideo.v1.layers.norms import RMSNorm
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.layers.weight_loading import check_shape
from fastvideo.v1.models.base import Model, ModelConfig


@dataclass(frozen=True, kw_only=True)
class UMT5Config(ModelConfig):
    """``text_encoder/config.json``; the defaults are those that files written before a key existed rely on."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    def __post_init__(self) -> None:
        if self.feed_forward_proj != "gated-gelu":
            raise ValueError(f"feed_forward_proj={self.feed_forward_proj!r} is not supported; UMT5 has 'gated-gelu'")


@lru_cache(maxsize=16)
def relative_position_buckets(length: int, num_buckets: int, max_distance: int, device: torch.device) -> torch.Tensor:
    """The bucket of every pair of query and key position, ``[s s]``.

    Half of the buckets are for keys behind the query. Of each half, one half is for single distances and the other for
    distances that grow up to ``max_distance`` (arXiv 1910.10683, section 2.1). Computed on the CPU whatever the device,
    since a logarithm rounded otherwise would move a distance to another bucket.
    """
    half = num_buckets // 2
    num_exact = half // 2
    distance = torch.arange(length, device="cpu")
    growth = torch.log(distance.float() / num_exact) / math.log(max_distance / num_exact)
    # Distances under num_exact have no use for the logarithm, and 0 none at all.
    coarse = num_exact + (growth.clamp(min=0) * (half - num_exact)).long()
    bucket = torch.where(distance < num_exact, distance, coarse.clamp(max=half - 1))
    offset = distance[None, :] - distance[:, None]
    return (bucket[offset.abs()] + half * (offset > 0)).to(device)


class RelativePositionBias(nn.Module):
    """A learned bias for each bucket and head, the heads split over the tensor-parallel group."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self._group = get_tp_group()
        num_local_heads = self._group.shard_size(num_heads, "num_heads")
        self.weight = nn.Parameter(torch.empty(num_buckets, num_local_heads), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        num_buckets, num_local_heads = param.shape
        check_shape(loaded, (num_buckets, num_local_heads * self._group.size))
        param.data.copy_(self._group.shard(loaded, dim=1))

    def forward(self, buckets: torch.Tensor) -> torch.Tensor:
        """Buckets ``[s s]`` to biases ``[1 n s s]``."""
        return F.embedding(buckets, self.weight).permute(2, 0, 1).unsqueeze(0)


class SelfAttention(nn.Module):
    """Attention without the division by sqrt(d), with position bias: ``[b s i] -> [b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.head_size = config.d_kv
        width = config.num_heads * config.d_kv
        self.qkv = MergedColumnParallelLinear(config.d_model, [width] * 3, bias=False)
        self.o = RowParallelLinear(width, config.d_model, bias=False)
        self.relative_attention_bias = RelativePositionBias(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: torch.Tensor, buckets: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        query, key, value = rearrange(self.qkv(x), "b s (k n d) -> k b n s d", k=3, d=self.head_size)
        bias = self.relative_attention_bias(buckets)
        if visible is not None:
            # The lowest finite number, not minus infinity: a row without any token gives no NaN.
            bias = torch.where(visible, bias, torch.finfo(bias.dtype).min)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.o(rearrange(x, "b n s d -> b s (n d)"))


class GatedFeedForward(nn.Module):
    """``wo(gelu(wi_0 x) * (wi_1 x))``: ``[b s i] -> [b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.wi = MergedColumnParallelLinear(config.d_model, [config.d_ff] * 2, bias=False)
        self.wo = RowParallelLinear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, x = self.wi(x).chunk(2, dim=-1)
        return self.wo(F.gelu(gate, approximate="tanh") * x)


class AttentionLayer(nn.Module):
    """Norm, attention, residual: ``[b s i] -> [b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor, buckets: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        return x + self.SelfAttention(self.layer_norm(x), buckets, visible)


class FeedForwardLayer(nn.Module):
    """Norm, feed-forward, residual: ``[b s i] -> [b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """An attention layer and a feed-forward layer: ``[b s i] -> [b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: torch.Tensor, buckets: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, buckets, visible))


class Encoder(nn.Module):
    """The blocks and the norm after them: embeddings ``[b s i]`` to hidden states ``[b s i]``."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor, buckets: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        for block in self.block:
            x = block(x, buckets, visible)
        return self.final_layer_norm(x)


class UMT5EncoderModel(Model):
    """Token ids to hidden states."""

    config_class: ClassVar[type[ModelConfig]] = UMT5Config
    packed_modules: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "wi": ("wi_0", "wi_1")}
    # The same tensor as shared.weight, in the files that have it.
    ignored_keys: ClassVar[tuple[str, ...]] = ("encoder.embed_tokens.weight",)
    block_lists: ClassVar[tuple[str, ...]] = ("encoder.block",)
    overflows_float16: ClassVar[bool] = True
    config: UMT5Config

    def __init__(self, config: UMT5Config) -> None:
        super().__init__(config)
        self.shared = VocabParallelEmbedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids ``[b s]`` and a mask ``[b s]`` (0: padding, seen by no token) to hidden states ``[b s d_model]``.

        Without padding pass no mask: the bias is then shared by the batch instead of copied for each row.
        """
        buckets = relative_position_buckets(
            input_ids.shape[1],
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
            input_ids.device,
        )
        visible = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        return self.encoder(self.shared(input_ids), buckets, visible)
