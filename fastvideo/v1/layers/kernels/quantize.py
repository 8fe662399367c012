"""Triton: rows to 8-bit floats, each with a scale of its own, in one pass; GELU before, if asked for.

A row is held in chunks: as one block, rounded up to a power of two, almost half of its lanes would be idle at the
widths of feed-forwards.
"""

# Tuples grow in a kernel, whose loops the compiler unrolls.
# mypy: disable-error-code="assignment,var-annotated"

import torch
import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)  # of float8_e4m3fn


@triton.jit
def _gelu(x):
    """The tanh form, by the GPU's own tanh: one instruction, off by 2^-11, for an exponential and a quotient."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1)
    return 0.5 * x * (1.0 + tanh)


@triton.jit
def _quantize_rows_kernel(
    in_ptr, out_ptr, scale_ptr, num_rows, width,
    GELU: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, NUM_CHUNKS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, CHUNK)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + columns
    is_row = (rows < num_rows)[:, None]
    loaded = ()
    for chunk in tl.static_range(NUM_CHUNKS):
        inside = is_row & (chunk * CHUNK + columns < width)
        loaded += (tl.load(in_ptr + offsets + chunk * CHUNK, mask=inside, other=0.0),)
    values = ()
    largest = tl.zeros([ROWS], tl.float32)
    for chunk in tl.static_range(NUM_CHUNKS):
        x = loaded[chunk].to(tl.float32)
        if GELU:
            x = _gelu(x)
        values += (x,)
        largest = tl.maximum(largest, tl.max(tl.abs(x), axis=1))
    scale = tl.maximum(largest / FP8_MAX, 1e-12)
    tl.store(scale_ptr + rows, scale, mask=rows < num_rows)
    inverse = (1.0 / scale)[:, None]
    for chunk in tl.static_range(NUM_CHUNKS):
        inside = is_row & (chunk * CHUNK + columns < width)
        tl.store(out_ptr + offsets + chunk * CHUNK, (values[chunk] * inverse).to(tl.float8e4nv), mask=inside)


def quantize_rows(x: torch.Tensor, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """``[rows, d]`` to float8_e4m3fn ``[rows, d]`` and float32 ``[rows, 1]``; tanh GELU first if ``gelu``."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    width = x.shape[1]
    rows, chunk, num_warps = (2, 512, 2) if width <= 2048 else (1, 1024, 4) if width <= 16384 else (1, 4096, 16)
    _quantize_rows_kernel[(triton.cdiv(len(x), rows),)](
        x, out, scales, len(x), width,
        GELU=gelu, ROWS=rows, CHUNK=chunk, NUM_CHUNKS=triton.cdiv(width, chunk), num_warps=num_warps,
    )  # fmt: skip
    return out, scales
