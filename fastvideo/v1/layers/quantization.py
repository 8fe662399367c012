"""Matrix products of 8-bit floats: an approximate mode, chosen by ``FastVideoArgs.quantization``.

Weights have a scale for each output, activations one for each token, found on the way (FP8 formats for deep learning,
arXiv 2209.05433). Products accumulate in float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max


class QuantizedRows(NamedTuple):
    """``values * scales``: float8 ``[..., d]`` and float32 ``[..., 1]``; ``dtype`` is what products return."""

    values: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    def view(self, shape: tuple[int, ...]) -> "QuantizedRows":
        """The same rows in another order of dimensions; the last stays as it is."""
        return QuantizedRows(self.values.view(shape), self.scales.view(*shape[:-1], 1), self.dtype)


def quantize_rows(x: torch.Tensor, gelu: bool = False) -> QuantizedRows:
    """``[..., d]`` with a scale for each row; the tanh form of GELU first if ``gelu``."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if x.is_cuda:
        from fastvideo.v1.layers.kernels import quantize

        values, scales = quantize.quantize_rows(flat, gelu)
    else:
        flat = F.gelu(flat.float(), approximate="tanh") if gelu else flat.float()
        scales = (flat.abs().amax(dim=1, keepdim=True) / _FP8_MAX).clamp(min=1e-12)
        values = (flat / scales).to(_FP8)
    return QuantizedRows(values.view(x.shape), scales.view(*x.shape[:-1], 1), x.dtype)


def quantized_linear(x: torch.Tensor | QuantizedRows, weight: QuantizedRows, bias: torch.Tensor | None) -> torch.Tensor:
    """``[..., i]`` times the transpose of ``weight`` ``[o, i]``, plus ``bias`` ``[o]``: ``[..., o]``."""
    if isinstance(x, torch.Tensor):
        x = quantize_rows(x)
    values, scales = x.values.flatten(0, -2), x.scales.flatten(0, -2)
    if values.is_cuda:
        out = torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scales,
            scale_b=weight.scales.t(),
            bias=bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
    else:
        out = F.linear(values.float() * scales, weight.values.float() * weight.scales)
        out = (out if bias is None else out + bias).to(x.dtype)
    return out.unflatten(0, x.values.shape[:-1])
