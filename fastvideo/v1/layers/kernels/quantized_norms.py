"""Triton: residual, layer norm, modulation and the way to 8-bit floats in one pass over the tokens.

A token is held in chunks that make up its width, and the modulation is read again for each token: it stays in the
multiprocessor's own cache, where in registers it would leave room for few tokens at a time. Statistics and arithmetic
are float32.
"""

# Tuples grow in a kernel, whose loops the compiler unrolls.
# mypy: disable-error-code="assignment,var-annotated"

import torch
import triton
import triton.language as tl

from fastvideo.v1.layers.kernels.quantize import FP8_MAX
from fastvideo.v1.layers.quantization import QuantizedRows

ROWS = 4


@triton.jit
def _quantized_norm_kernel(
    x_ptr, y_ptr, gate_ptr, scale_ptr, shift_ptr, sum_ptr, out_ptr, out_scale_ptr,
    num_tokens, modulation_stride, gate_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_GATE: tl.constexpr, SCALE_OFFSET: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, NUM_CHUNKS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1)
    gate_ptr += batch * gate_stride
    scale_ptr += batch * modulation_stride
    shift_ptr += batch * modulation_stride
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        if token < num_tokens:
            start = (batch * num_tokens + token).to(tl.int64) * WIDTH
            values = ()
            total = tl.zeros([CHUNK], tl.float32)
            for chunk in tl.static_range(NUM_CHUNKS):
                columns = chunk * CHUNK + tl.arange(0, CHUNK)
                inside = columns < WIDTH
                x = tl.load(x_ptr + start + columns, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
                if HAS_RESIDUAL:
                    y = tl.load(y_ptr + start + columns, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
                    if HAS_GATE:
                        y *= tl.load(gate_ptr + columns, mask=inside, other=0.0).to(tl.float32)
                    rounded = (x + y).to(sum_ptr.dtype.element_ty)
                    tl.store(sum_ptr + start + columns, rounded, mask=inside)
                    x = rounded.to(tl.float32)
                values += (x,)
                total += x
            mean = tl.sum(total, axis=0) / WIDTH
            squares = tl.zeros([CHUNK], tl.float32)
            for chunk in tl.static_range(NUM_CHUNKS):
                inside = chunk * CHUNK + tl.arange(0, CHUNK) < WIDTH
                squares += tl.where(inside, (values[chunk] - mean) * (values[chunk] - mean), 0.0)
            inverse = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
            normed = ()
            largest = tl.zeros([CHUNK], tl.float32)
            for chunk in tl.static_range(NUM_CHUNKS):
                columns = chunk * CHUNK + tl.arange(0, CHUNK)
                inside = columns < WIDTH
                scale = tl.load(scale_ptr + columns, mask=inside, other=0.0).to(tl.float32) + SCALE_OFFSET
                shift = tl.load(shift_ptr + columns, mask=inside, other=0.0).to(tl.float32)
                out = (values[chunk] - mean) * inverse * scale + shift
                out = tl.where(inside, out, 0.0).to(x_ptr.dtype.element_ty).to(tl.float32)
                normed += (out,)
                largest = tl.maximum(largest, tl.abs(out))
            out_scale = tl.maximum(tl.max(largest, axis=0) / FP8_MAX, 1e-12)
            tl.store(out_scale_ptr + batch * num_tokens + token, out_scale)
            for chunk in tl.static_range(NUM_CHUNKS):
                columns = chunk * CHUNK + tl.arange(0, CHUNK)
                quantized = (normed[chunk] * (1.0 / out_scale)).to(tl.float8e4nv)
                tl.store(out_ptr + start + columns, quantized, mask=columns < WIDTH)


def quantized_norm(
    x: torch.Tensor,
    y: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    scale_offset: float,
) -> tuple[torch.Tensor, QuantizedRows]:
    """``x + y * gate`` (or ``x + y``, or ``x`` itself) and its ``layer_norm * (scale_offset + scale) + shift``.

    ``x`` and ``y`` ``[b, s, d]``, the others ``[b or 1, 1, d]``.
    """
    b, s, d = x.shape
    total = x if y is None else torch.empty_like(x)
    out, out_scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(b, s, 1, dtype=torch.float32)
    chunk, num_warps = (512, 2) if d <= 2048 else (1024, 4)
    _quantized_norm_kernel[(triton.cdiv(s, ROWS), b)](
        x, x if y is None else y, scale if gate is None else gate, scale, shift, total, out, out_scales,
        s, _stride(scale), 0 if gate is None else _stride(gate), eps,
        HAS_RESIDUAL=y is not None, HAS_GATE=gate is not None, SCALE_OFFSET=scale_offset, WIDTH=d,
        ROWS=ROWS, CHUNK=chunk, NUM_CHUNKS=triton.cdiv(d, chunk), num_warps=num_warps,
    )  # fmt: skip
    return total, QuantizedRows(out, out_scales, x.dtype)


def _stride(modulation: torch.Tensor) -> int:
    return 0 if modulation.shape[0] == 1 else modulation.stride(0)
