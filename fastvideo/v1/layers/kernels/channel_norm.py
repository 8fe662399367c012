"""Triton: what stands between the convolutions of a channels-last autoencoder, one pass over memory each.

A feature map ``[b, c, t, h, w]`` in channels-last layout is a matrix of ``t h w`` rows of ``c`` channels for each
sample. Arithmetic is float32. A convolution's bias is added here, where the map is read anyway.
"""

import torch
import triton
import triton.language as tl

ROWS = 16


@triton.jit
def _norm_silu_kernel(
    x_ptr, bias_ptr, gamma_ptr, out_ptr, num_rows, width, x_stride, out_stride, eps,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < num_rows) & (columns < width)
    x = tl.load(x_ptr + sample * x_stride + rows * width + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None] * gamma
    x = x * tl.sigmoid(x)
    tl.store(out_ptr + sample * out_stride + rows * width + columns, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _bias_residual_kernel(x_ptr, bias_ptr, y_ptr, size, width, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offsets % width, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_ptr + offsets, (x + bias + y).to(x_ptr.dtype.element_ty), mask=inside)


def norm_silu(x: torch.Tensor, bias: torch.Tensor | None, gamma: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """``silu(rms_norm(x + bias) * gamma)`` into ``out``; both ``[b, c, t, h, w]``, each sample's frames contiguous."""
    b, c, t, h, w = x.shape
    num_rows = t * h * w
    _norm_silu_kernel[(triton.cdiv(num_rows, ROWS), b)](
        x, x if bias is None else bias, gamma, out, num_rows, c, x.stride(0), out.stride(0), eps,
        HAS_BIAS=bias is not None, ROWS=ROWS, BLOCK=triton.next_power_of_2(c), num_warps=4,
    )  # fmt: skip


def add_bias_residual(x: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x + bias + y`` into ``x``; both ``[b, c, t, h, w]`` in channels-last layout."""
    _bias_residual_kernel[(triton.cdiv(x.numel(), 1024),)](x, bias, y, x.numel(), x.shape[1], BLOCK=1024, num_warps=4)
    return x
