"""Attention of 8-bit floats by FlashAttention 3, on Hopper: an approximate mode."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastvideo.v1.attention.backends.abstract import AttentionBackend
from fastvideo.v1.attention.backends.flash_attn import find_kernel

_FP8 = torch.float8_e4m3fn
_VERSION = 3  # of FlashAttention, the one that multiplies 8-bit floats on Hopper


class EightBitHeads(NamedTuple):
    """``values * scales + centres``: float8 ``[b, s, n, d]``, float32 ``[b, n]`` and ``[b, n, d]``."""

    values: torch.Tensor
    scales: torch.Tensor
    centres: torch.Tensor


class Fp8AttentionBackend(AttentionBackend):
    """Both products of attention in 8-bit floats (arXiv 2407.08608, section 3.3), a scale for each head.

    Keys and values are rounded as distances from a centre of their channels (SageAttention2, arXiv 2411.10958): softmax
    does not see what all keys share, and the mean of the values is added afterwards, so that a product's short
    accumulator does not have to carry it. A CPU rounds inputs alike and multiplies in full.
    """

    exact = False

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        if head_size % 16 or head_size > 256:
            return f"it needs a head size that 16 divides, up to 256, not {head_size}"
        if device.type != "cuda":
            return None
        if torch.cuda.get_device_capability(device)[0] != 9:
            return "its kernels are for Hopper, compute capability 9.0"
        if find_kernel(_VERSION) is None:
            return "no FlashAttention 3 is installed; pip install fa3-fwd"
        return None

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if query.shape[2] != key.shape[2]:
            raise ValueError(
                f"FP8_ATTN has a scale for each head, and {query.shape[2]} heads of queries share {key.shape[2]} of "
                "keys; choose another attention backend for this model"
            )
        queries = round_heads(query, None)
        keys = round_heads(key, None, find_centre=True)
        values = round_heads(value, value.mean(dim=1, dtype=torch.float32))
        attend = _by_kernel if query.is_cuda else _in_full
        out = attend(queries, keys, values, self.softmax_scale, self.causal)
        return out.add_(values.centres[:, None]).to(query.dtype)


def round_heads(x: torch.Tensor, centre: torch.Tensor | None, find_centre: bool = False) -> EightBitHeads:
    """``[b, s, n, d]`` as distances from ``centre`` ``[b, n, d]``, or from about the mean, or from 0.

    A centre may be any: what is made of the distances is made exact for it. So the mean, and the scale with room to
    spare, are those of a sample of the tokens.
    """
    if x.is_cuda:
        from fastvideo.v1.layers.kernels.eight_bit_heads import to_eight_bits

        return EightBitHeads(*to_eight_bits(x, centre, find_centre))
    x = x.float()
    if centre is None:
        centre = x.mean(dim=1) if find_centre else torch.zeros_like(x[:, 0])
    x = x - centre[:, None]
    scales = (x.abs().amax(dim=(1, 3)) / torch.finfo(_FP8).max).clamp(min=1e-12)
    return EightBitHeads((x / scales[:, None, :, None]).to(_FP8), scales, centre)


def _by_kernel(
    queries: EightBitHeads, keys: EightBitHeads, values: EightBitHeads, softmax_scale: float, causal: bool
) -> torch.Tensor:
    kernel = find_kernel(_VERSION)
    assert kernel is not None, "the backend was chosen without FlashAttention 3 installed"
    out = kernel(
        queries.values,
        keys.values,
        values.values,
        softmax_scale=softmax_scale,
        causal=causal,
        q_descale=queries.scales,
        k_descale=keys.scales,
        v_descale=values.scales,
    )
    return out[0] if isinstance(out, tuple) else out


def _in_full(
    queries: EightBitHeads, keys: EightBitHeads, values: EightBitHeads, softmax_scale: float, causal: bool
) -> torch.Tensor:
    query, key, value = (
        (heads.values.float() * heads.scales[:, None, :, None]).transpose(1, 2) for heads in (queries, keys, values)
    )
    out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=softmax_scale)
    return out.transpose(1, 2)
