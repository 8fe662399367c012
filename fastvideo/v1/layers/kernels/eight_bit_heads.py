"""Triton: queries, keys or values to 8-bit floats, each head with a scale of its own."""

import torch
import triton
import triton.language as tl

FP8_MAX = 448.0  # of float8_e4m3fn
HEADROOM = 8.0  # of the scale over a sample of tokens: 3 of the 18 binades of 8-bit floats
SAMPLE = 1024


@triton.jit
def _measure_kernel(
    x_ptr, centre_ptr, scale_ptr, num_sampled, step, batch_stride, token_stride, unit,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, FIND_CENTRE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head, batch, num_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    real = columns < HEAD
    low = tl.full([ROWS, BLOCK], float("inf"), tl.float32)
    high = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    x_ptr += batch.to(tl.int64) * batch_stride + head * HEAD
    for start in range(0, num_sampled, ROWS):
        samples = (start + tl.arange(0, ROWS))[:, None]
        inside = (samples < num_sampled) & real[None, :]
        offsets = samples.to(tl.int64) * step * token_stride + columns[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        total += x
    centre_ptr += (batch * num_heads + head) * HEAD + columns
    if FIND_CENTRE:
        centre = tl.sum(total, axis=0) / num_sampled
        tl.store(centre_ptr, centre, mask=real)
    else:
        centre = tl.load(centre_ptr, mask=real, other=0.0)
    reach = tl.maximum(tl.max(high, axis=0) - centre, centre - tl.min(low, axis=0))
    reach = tl.max(tl.where(real, reach, 0.0), axis=0)
    tl.store(scale_ptr + batch * num_heads + head, tl.maximum(reach * unit, 1e-12))


@triton.jit
def _convert_kernel(
    x_ptr, centre_ptr, scale_ptr, out_ptr, num_tokens, width, batch_stride, token_stride,
    HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (tokens < num_tokens)[:, None] & (columns < width)[None, :]
    centre = tl.load(centre_ptr + batch * width + columns, mask=columns < width, other=0.0)
    scale = tl.load(scale_ptr + batch * (width // HEAD) + columns // HEAD, mask=columns < width, other=1.0)
    offsets = batch.to(tl.int64) * batch_stride + tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x = tl.clamp((x - centre[None, :]) * (1.0 / scale)[None, :], -448.0, 448.0)
    target = (batch * num_tokens + tokens).to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out_ptr + target, x.to(tl.float8e4nv), mask=inside)


def to_eight_bits(
    x: torch.Tensor, centre: torch.Tensor | None, find_centre: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(x - centre) / scale`` as float8 ``[b, s, n, d]``, scales ``[b, n]`` and centres ``[b, n, d]``, float32.

    Scales are measured on some tokens, and so are the centres with ``find_centre``; without either centre it is 0.
    """
    b, s, n, d = x.shape
    if x.stride(3) != 1 or x.stride(2) != d:
        x = x.contiguous()
    if centre is None:
        centre = torch.zeros(b, n, d, dtype=torch.float32, device=x.device)
    scales = torch.empty(b, n, dtype=torch.float32, device=x.device)
    out = torch.empty(b, s, n, d, dtype=torch.float8_e4m3fn, device=x.device)
    step = max(s // SAMPLE, 1)
    block, width = triton.next_power_of_2(d), n * d
    _measure_kernel[(n, b)](
        x, centre, scales, triton.cdiv(s, step), step, x.stride(0), x.stride(1), HEADROOM / FP8_MAX,
        HEAD=d, BLOCK=block, FIND_CENTRE=find_centre, ROWS=max(8192 // block, 16), num_warps=8,
    )  # fmt: skip
    rows, columns = 8, 512
    _convert_kernel[(triton.cdiv(s, rows), triton.cdiv(width, columns), b)](
        x, centre, scales, out, s, width, x.stride(0), x.stride(1), HEAD=d, ROWS=rows, BLOCK=columns, num_warps=4
    )
    return out, scales, centre
