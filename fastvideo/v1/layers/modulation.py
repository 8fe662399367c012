"""Adaptive layer norm (DiT, arXiv 2212.09748): float32 inside, the input's dtype outside.

Shapes: ``x`` and ``y`` are ``[b, s, d]``; ``shift``, ``scale`` and ``gate`` are ``[b, 1, d]``, or ``[b, s, d]``
where every token has its own timestep. With ``quantize`` a norm's result is in 8 bits, for layers that are. On a GPU
each function is one Triton kernel, else plain PyTorch.
"""

import torch
import torch.nn.functional as F

from fastvideo.v1.layers.norms import LayerNorm
from fastvideo.v1.layers.quantization import QuantizedRows, quantize_rows


def modulated_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float, quantize: bool = False
) -> torch.Tensor | QuantizedRows:
    """``layer_norm(x) * (1 + scale) + shift``, the norm without weights of its own."""
    if _has_kernel(x, shift):
        from fastvideo.v1.layers.kernels import norms, quantized_norms

        if quantize:
            return quantized_norms.quantized_norm(x, None, None, scale, shift, eps, 1.0)[1]
        return norms.norm(x, scale, shift, eps, 1.0)
    out = (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)
    return quantize_rows(out) if quantize else out


def residual_modulated_norm(
    x: torch.Tensor,
    y: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    gate: torch.Tensor | None = None,
    quantize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | QuantizedRows]:
    """``x + y``, or ``x + y * gate``, and its :func:`modulated_norm`."""
    if _has_kernel(x, shift):
        from fastvideo.v1.layers.kernels import norms, quantized_norms

        residual_norm = quantized_norms.quantized_norm if quantize else norms.residual_norm
        return residual_norm(x, y, gate, scale, shift, eps, 1.0)
    x = x + y if gate is None else gated_residual(x, y, gate)
    return x, modulated_norm(x, shift, scale, eps, quantize)


def gated_residual_norm(
    x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, norm: LayerNorm | None, quantize: bool = False
) -> tuple[torch.Tensor, torch.Tensor | QuantizedRows]:
    """``x + y * gate``, and that through ``norm`` (or itself, if there is none)."""
    if norm is not None and norm.weight is not None and norm.bias is not None and _has_kernel(x, gate):
        from fastvideo.v1.layers.kernels import norms, quantized_norms

        weight, bias = norm.weight[None, None], norm.bias[None, None]
        residual_norm = quantized_norms.quantized_norm if quantize else norms.residual_norm
        return residual_norm(x, y, gate, weight, bias, norm.eps, 0.0)
    x = gated_residual(x, y, gate)
    out = x if norm is None else norm(x)
    return x, quantize_rows(out) if quantize else out


def gated_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x + y * gate``."""
    if _has_kernel(x, gate):
        from fastvideo.v1.layers.kernels import norms

        return norms.gated_residual(x, y, gate)
    return (x.float() + y.float() * gate).to(x.dtype)


def _has_kernel(x: torch.Tensor, modulation: torch.Tensor) -> bool:
    # A CUDA grid has no more than 65,535 rows, which are samples here, or runs of tokens with a timestep of their own.
    return x.is_cuda and x.is_contiguous() and modulation.shape[1] == 1 and len(x) < 2**16
