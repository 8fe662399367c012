"""Triton: RMS norm of queries and keys over the full width, and their rotation, in one pass.

Reads the queries and keys out of the packed projection; the values stay where they are.
"""

import torch
import triton
import triton.language as tl

ROWS = 4


@triton.jit
def _norm_rotate_kernel(
    in_ptr, weight_ptr, cos_ptr, sin_ptr, square_ptr, out_ptr,
    num_rows, num_tokens, width, in_stride, part_offset, out_part_stride, eps,
    HALF_HEAD: tl.constexpr, ROTATE: tl.constexpr, HAS_SQUARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + part * width + columns, mask=inside, other=0.0).to(tl.float32)
    pairs = tl.arange(0, BLOCK // 2)
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        if row < num_rows:
            source = row.to(tl.int64) * in_stride + part * part_offset
            x = tl.load(in_ptr + source + columns, mask=inside, other=0.0).to(tl.float32)
            if HAS_SQUARES:
                mean_square = tl.load(square_ptr + row * tl.num_programs(1) + part)
            else:
                mean_square = tl.sum(x * x, axis=0) / width
            x = x * tl.rsqrt(mean_square + eps) * weight
            if ROTATE:
                table = (row % num_tokens) * HALF_HEAD + pairs % HALF_HEAD
                cos, sin = tl.load(cos_ptr + table), tl.load(sin_ptr + table)
                even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
                x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
            target = part.to(tl.int64) * out_part_stride + row.to(tl.int64) * width
            tl.store(out_ptr + target + columns, x.to(out_ptr.dtype.element_ty), mask=inside)


def qk_norm_rotary(
    qkv: torch.Tensor, weights: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, head_size: int, eps: float,
    squares: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Packed ``[b, s, 3 d]`` to queries and keys ``[b, s, d]``; ``weights`` ``[2, d]``, tables ``[s, head / 2]``.

    ``squares`` float32 ``[b, s, 2]`` are the mean squares of both, where ``d`` is not all of their width.
    """
    b, s, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = torch.empty(2, b, s, width, dtype=qkv.dtype, device=qkv.device)
    _launch(qkv, weights, out, cos, sin, s, width, parts=2, head_size=head_size, eps=eps, squares=squares)
    return out[0], out[1]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension of ``[b, s, d]``."""
    out = torch.empty_like(x)
    _launch(x, weight, out, x, x, x.shape[1], x.shape[-1], parts=1, head_size=0, eps=eps)
    return out


def _launch(
    source: torch.Tensor, weights: torch.Tensor, out: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    num_tokens: int, width: int, *, parts: int, head_size: int, eps: float, squares: torch.Tensor | None = None,
) -> None:  # fmt: skip
    num_rows = source.shape[0] * num_tokens
    block = triton.next_power_of_2(width)
    _norm_rotate_kernel[(triton.cdiv(num_rows, ROWS), parts)](
        source, weights, cos, sin, source if squares is None else squares, out,
        num_rows, num_tokens, width, source.stride(1), width, num_rows * width, eps,
        HALF_HEAD=max(head_size // 2, 1), ROTATE=head_size > 0, HAS_SQUARES=squares is not None, ROWS=ROWS, BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip


@triton.jit
def _head_norm_rotate_kernel(
    in_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr,
    num_rows, num_tokens, num_rotated, width, out_tokens, first_out_token, out_part_stride, eps,
    HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weight = tl.load(weight_ptr + (part % 2) * HEAD + columns % HEAD).to(tl.float32)
    pairs = tl.arange(0, BLOCK // 2)
    for step in range(ROWS):
        row = tl.program_id(0) * ROWS + step
        if row < num_rows:
            batch, token = row // num_tokens, row % num_tokens
            x = tl.load(in_ptr + row.to(tl.int64) * 3 * width + part * width + columns, mask=inside, other=0.0)
            if part < 2:
                heads = tl.reshape(x.to(tl.float32), (BLOCK // HEAD, HEAD))
                inverse = tl.rsqrt(tl.sum(heads * heads, axis=1) / HEAD + eps)
                y = tl.reshape(heads * inverse[:, None], (BLOCK,)) * weight
                if token < num_rotated:
                    table = token * (HEAD // 2) + pairs % (HEAD // 2)
                    cos, sin = tl.load(cos_ptr + table), tl.load(sin_ptr + table)
                    even, odd = tl.split(tl.reshape(y, (BLOCK // 2, 2)))
                    y = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
                x = y.to(x.dtype)
            out_row = batch * out_tokens + first_out_token + token
            target = part.to(tl.int64) * out_part_stride + out_row.to(tl.int64) * width
            tl.store(out_ptr + target + columns, x, mask=inside)


HeadStream = tuple[torch.Tensor, torch.Tensor, float, tuple[torch.Tensor, torch.Tensor] | None]


def head_norm_rotary(streams: list[HeadStream]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Streams of packed ``[b, s_i, 3 d]``, weights ``[2, head]``, epsilon and tables ``[<= s_i, head / 2]`` to queries,
    keys and values ``[b, s, d]``. The values of a single stream stay where they are.
    """
    (first, weight, _, _), b, width = streams[0], streams[0][0].shape[0], streams[0][0].shape[2] // 3
    total = sum(qkv.shape[1] for qkv, *_ in streams)
    parts = 2 if len(streams) == 1 else 3
    out = torch.empty(parts, b, total, width, dtype=first.dtype, device=first.device)
    start = 0
    for qkv, weight, eps, tables in streams:
        num_tokens, (cos, sin) = qkv.shape[1], tables or (qkv, qkv)
        num_rows, block = b * num_tokens, triton.next_power_of_2(width)
        _head_norm_rotate_kernel[(triton.cdiv(num_rows, ROWS), parts)](
            qkv, weight, cos, sin, out, num_rows, num_tokens, len(cos) if tables else 0, width, total, start,
            b * total * width, eps, HEAD=weight.shape[1], ROWS=ROWS, BLOCK=block,
            num_warps=4 if block <= 2048 else 8,
        )  # fmt: skip
        start += num_tokens
    return out[0], out[1], first.chunk(3, dim=-1)[2] if parts == 2 else out[2]
