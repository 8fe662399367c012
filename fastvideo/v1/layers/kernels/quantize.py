"""Triton: rows to 8-bit floats, each with a scale of its own, in one pass; GELU before, if asked for."""

import torch
import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)  # of float8_e4m3fn


@triton.jit
def store_quantized(x, out_ptr, scale_ptr, row, width, columns, inside):
    """Writes the row ``x``, float32 and 0 outside, as 8-bit floats and its scale."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / FP8_MAX, 1e-12)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * width + columns, (x * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


@triton.jit
def _quantize_rows_kernel(in_ptr, out_ptr, scale_ptr, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(in_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # tanh(u) = 2 sigmoid(2 u) - 1, so that 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    store_quantized(x, out_ptr, scale_ptr, row, width, columns, inside)


def quantize_rows(x: torch.Tensor, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``[rows, d]`` to float8_e4m3fn ``[rows, d]`` and float32 ``[rows, 1]``; tanh GELU first if ``gelu``."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _quantize_rows_kernel[(len(x),)](
        x, out, scales, x.shape[1], GELU=gelu, BLOCK=block, num_warps=min(max(block // 1024, 1), 16)
    )
    return out, scales
