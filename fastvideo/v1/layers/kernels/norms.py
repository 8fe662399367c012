"""Triton: residual, layer norm and modulation in one pass over the tokens.

Every program keeps the modulation of its columns in registers and walks ``ROWS`` tokens: read from L2 for each token,
those float32 vectors would cost as much as the tokens themselves. Statistics and arithmetic are float32.
"""

import torch
import triton
import triton.language as tl

from fastvideo.v1.layers.kernels.quantize import store_quantized
from fastvideo.v1.layers.quantization import QuantizedRows

ROWS = 8


@triton.jit
def _residual_norm_kernel(
    x_ptr, y_ptr, gate_ptr, scale_ptr, shift_ptr, sum_ptr, out_ptr, out_scale_ptr,
    num_tokens, width, modulation_stride, gate_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_GATE: tl.constexpr, SCALE_OFFSET: tl.constexpr, QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = (
        tl.load(scale_ptr + batch * modulation_stride + columns, mask=inside, other=0.0).to(tl.float32) + SCALE_OFFSET
    )
    shift = tl.load(shift_ptr + batch * modulation_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_GATE:
        gate = tl.load(gate_ptr + batch * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        if token < num_tokens:
            offsets = (batch * num_tokens + token).to(tl.int64) * width + columns
            x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            if HAS_RESIDUAL:
                y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                if HAS_GATE:
                    y *= gate
                rounded = (x + y).to(sum_ptr.dtype.element_ty)
                tl.store(sum_ptr + offsets, rounded, mask=inside)
                x = rounded.to(tl.float32)
            mean = tl.sum(x, axis=0) / width
            centred = tl.where(inside, x - mean, 0.0)
            inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
            out = centred * inverse * scale + shift
            if QUANTIZE:
                row_of_all = (batch * num_tokens + token).to(tl.int64)
                rounded_out = tl.where(inside, out, 0.0).to(x_ptr.dtype.element_ty).to(tl.float32)
                store_quantized(rounded_out, out_ptr, out_scale_ptr, row_of_all, width, columns, inside)
            else:
                tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_residual_kernel(
    x_ptr, y_ptr, gate_ptr, out_ptr, num_tokens, width, gate_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    batch = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_ptr + batch * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        if token < num_tokens:
            offsets = (batch * num_tokens + token).to(tl.int64) * width + columns
            x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            tl.store(out_ptr + offsets, (x + y * gate).to(out_ptr.dtype.element_ty), mask=inside)


def _grid(x: torch.Tensor) -> tuple[int, int]:
    return triton.cdiv(x.shape[1], ROWS), x.shape[0]


def _launch(x: torch.Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(x.shape[-1])
    return {"ROWS": ROWS, "BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


def norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, scale_offset: float, quantize: bool = False
) -> torch.Tensor | QuantizedRows:
    """``layer_norm(x) * (scale_offset + scale) + shift``; ``x`` ``[b, s, d]``, the others ``[b or 1, 1, d]``."""
    out, out_scales = _output(x, quantize)
    stride = 0 if scale.shape[0] == 1 else scale.stride(0)
    _residual_norm_kernel[_grid(x)](
        x, x, x, scale, shift, x, out, out_scales, x.shape[1], x.shape[2], stride, 0, eps,
        HAS_RESIDUAL=False, HAS_GATE=False, SCALE_OFFSET=scale_offset, QUANTIZE=quantize, **_launch(x),
    )  # fmt: skip
    return QuantizedRows(out, out_scales, x.dtype) if quantize else out


def residual_norm(
    x: torch.Tensor,
    y: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    scale_offset: float,
    quantize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | QuantizedRows]:
    """``x + y * gate`` and its modulated layer norm, as in :func:`norm`; without ``gate``, ``x + y``."""
    total = torch.empty_like(x)
    out, out_scales = _output(x, quantize)
    stride = 0 if scale.shape[0] == 1 else scale.stride(0)
    gate_stride = 0 if gate is None or gate.shape[0] == 1 else gate.stride(0)
    _residual_norm_kernel[_grid(x)](
        x, y, x if gate is None else gate, scale, shift, total, out, out_scales, x.shape[1], x.shape[2], stride,
        gate_stride, eps,
        HAS_RESIDUAL=True, HAS_GATE=gate is not None, SCALE_OFFSET=scale_offset, QUANTIZE=quantize, **_launch(x),
    )  # fmt: skip
    return total, QuantizedRows(out, out_scales, x.dtype) if quantize else out


def _output(x: torch.Tensor, quantize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the result, and for its rows' scales if it has any."""
    if not quantize:
        return torch.empty_like(x), x
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)


def gated_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x + y * gate``; ``x`` and ``y`` ``[b, s, d]``, ``gate`` ``[b or 1, 1, d]``."""
    out = torch.empty_like(x)
    gate_stride = 0 if gate.shape[0] == 1 else gate.stride(0)
    _gated_residual_kernel[_grid(x)](x, y, gate, out, x.shape[1], x.shape[2], gate_stride, **_launch(x))
    return out
