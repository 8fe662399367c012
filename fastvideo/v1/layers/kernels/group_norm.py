"""Triton: group norm, SiLU and the margins of a convolution, between the convolutions of a channels-last autoencoder.

A feature map ``[b, c, t, h, w]`` in channels-last layout is a matrix of ``t h w`` rows of ``c`` channels for each
sample. It is read twice, for the moments and for the result, which is written where the next convolution reads.
Arithmetic is float32. A convolution's bias is added here, where the map is read anyway.
"""

import torch
import triton
import triton.language as tl

ROWS_PER_MOMENT = 512
TILE = 8192  # numbers that a program holds at once


@triton.jit
def _moments_kernel(
    x_ptr, moments_ptr, num_rows, width, x_stride, SPAN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Mean and sum of squared distances of each channel over ``SPAN`` rows, by way of the distances from one row."""
    block, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    first = block * SPAN
    x_ptr += sample * x_stride + first.to(tl.int64) * width
    origin = tl.load(x_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, SPAN, ROWS):
        rows = (start + tl.arange(0, ROWS))[:, None]
        inside = (first + rows < num_rows) & (columns < width)[None, :]
        x = tl.load(x_ptr + rows * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x - origin[None, :], 0.0)
        total += tl.sum(x, axis=0)
        squares += tl.sum(x * x, axis=0)
    count = tl.minimum(SPAN, num_rows - first).to(tl.float32)
    moments_ptr += (sample * tl.num_programs(0) + block) * 2 * width + columns
    tl.store(moments_ptr, origin + total / count, mask=columns < width)
    tl.store(moments_ptr + width, squares - total * total / count, mask=columns < width)


@triton.jit
def _affine_kernel(
    moments_ptr, bias_ptr, weight_ptr, shift_ptr, affine_ptr, num_rows, num_blocks, width, eps,
    HAS_BIAS: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a group's norm multiplies each channel with and adds to it, the bias in front of the norm included."""
    group, sample = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    channels = group * GROUP + columns
    real = columns < GROUP
    bias = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=real, other=0.0).to(tl.float32)
    moments_ptr += sample.to(tl.int64) * num_blocks * 2 * width
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        share = tl.maximum(tl.minimum(SPAN, num_rows - blocks * SPAN), 0).to(tl.float32) / num_rows
        inside = (blocks < num_blocks)[:, None] & real[None, :]
        means = tl.load(moments_ptr + blocks[:, None] * 2 * width + channels[None, :], mask=inside, other=0.0)
        total += tl.sum(means * share[:, None], axis=0)
    mean = tl.sum(total + bias, axis=0) / GROUP
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_blocks, BLOCKS):
        blocks = start + tl.arange(0, BLOCKS)
        share = tl.maximum(tl.minimum(SPAN, num_rows - blocks * SPAN), 0).to(tl.float32) / num_rows
        inside = (blocks < num_blocks)[:, None] & real[None, :]
        pointers = moments_ptr + blocks[:, None] * 2 * width + channels[None, :]
        distance = tl.load(pointers, mask=inside, other=0.0) + bias[None, :] - mean
        within = tl.load(pointers + width, mask=inside, other=0.0) / num_rows
        total += tl.sum(tl.where(inside, within + distance * distance * share[:, None], 0.0), axis=0)
    scale = tl.load(weight_ptr + channels, mask=real, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(tl.sum(total, axis=0) / GROUP + eps)
    shift = tl.load(shift_ptr + channels, mask=real, other=0.0).to(tl.float32) + (bias - mean) * scale
    affine_ptr += sample.to(tl.int64) * 2 * width + channels
    tl.store(affine_ptr, scale, mask=real)
    tl.store(affine_ptr + width, shift, mask=real)


@triton.jit
def _replicate_kernel(
    x_ptr, affine_ptr, out_ptr, num_rows, out_height, out_width, height, width, channels, x_stride, out_stride,
    HAS_AFFINE: tl.constexpr, FRAMES: tl.constexpr, SPACE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < channels)[None, :]
    line = rows // out_width
    frame = (tl.maximum(line // out_height - 2, 0) + FRAMES - 1) // FRAMES
    row = tl.minimum(tl.maximum(line % out_height - 1, 0) // SPACE, height - 1)
    column = tl.minimum(tl.maximum(rows % out_width - 1, 0) // SPACE, width - 1)
    source = ((frame * height + row) * width + column).to(tl.int64) * channels
    x = tl.load(x_ptr + sample * x_stride + source[:, None] + columns[None, :], mask=inside, other=0.0)
    if HAS_AFFINE:
        affine_ptr += sample * 2 * channels + columns
        scale = tl.load(affine_ptr, mask=columns < channels, other=0.0)
        shift = tl.load(affine_ptr + channels, mask=columns < channels, other=0.0)
        x = x.to(tl.float32) * scale[None, :] + shift[None, :]
        x = x * tl.sigmoid(x)
    out_ptr += sample * out_stride + (rows.to(tl.int64) * channels)[:, None] + columns[None, :]
    tl.store(out_ptr, x.to(out_ptr.dtype.element_ty), mask=inside)


def group_affine(
    x: torch.Tensor, bias: torch.Tensor | None, weight: torch.Tensor, shift: torch.Tensor, num_groups: int, eps: float
) -> torch.Tensor:
    """Factors and summands ``[b, 2, c]`` that make ``group_norm(x + bias) * weight + shift`` of ``x`` itself."""
    b, c = x.shape[:2]
    moments, num_rows = _moments(x)
    num_blocks = moments.shape[1]
    affine = torch.empty(b, 2, c, device=x.device, dtype=torch.float32)
    group = c // num_groups
    _affine_kernel[(num_groups, b)](
        moments, x if bias is None else bias, weight, shift, affine, num_rows, num_blocks, c, eps,
        HAS_BIAS=bias is not None, GROUP=group, SPAN=ROWS_PER_MOMENT, BLOCKS=128, BLOCK=triton.next_power_of_2(group),
    )  # fmt: skip
    return affine


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel over frames, rows and columns, float32: two ``[b, c]``."""
    moments, num_rows = _moments(x)
    means, squares = moments.unbind(2)
    firsts = torch.arange(0, num_rows, ROWS_PER_MOMENT, device=x.device)
    shares = ((num_rows - firsts).clamp(max=ROWS_PER_MOMENT) / num_rows)[:, None]
    mean = (means * shares).sum(1)
    distances = means - mean[:, None]
    return mean, (squares / num_rows + distances.square() * shares).sum(1)


def replicate(x: torch.Tensor, scale: tuple[int, int, int], affine: torch.Tensor | None) -> torch.Tensor:
    """``x`` enlarged by ``scale`` with its border repeated: two frames before, a pixel around; both channels-last.

    With ``affine`` (``group_affine``) what is written is ``silu(x * factors + summands)``.
    """
    b, c, t, h, w = x.shape
    frames, space = scale[0], scale[1]
    assert scale[1] == scale[2], f"scale={scale}: rows and columns are enlarged alike"
    t, rows, columns = 3 + frames * (t - 1), 2 + space * h, 2 + space * w
    out = x.new_empty(b, t, rows, columns, c).movedim(-1, 1)
    num_rows, block = t * rows * columns, triton.next_power_of_2(c)
    _replicate_kernel[(triton.cdiv(num_rows, _rows(block)), b)](
        x, x if affine is None else affine, out, num_rows, rows, columns, h, w, c, x.stride(0), out.stride(0),
        HAS_AFFINE=affine is not None, FRAMES=frames, SPACE=space, ROWS=_rows(block), BLOCK=block, num_warps=8,
    )  # fmt: skip
    return out


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Of each block of rows the channels' means and summed squared distances, ``[b, blocks, 2, c]``; and all rows."""
    b, c, t, h, w = x.shape
    num_rows, block = t * h * w, triton.next_power_of_2(c)
    num_blocks = triton.cdiv(num_rows, ROWS_PER_MOMENT)
    moments = torch.empty(b, num_blocks, 2, c, device=x.device, dtype=torch.float32)
    _moments_kernel[(num_blocks, b)](
        x, moments, num_rows, c, x.stride(0), SPAN=ROWS_PER_MOMENT, ROWS=_rows(block), BLOCK=block, num_warps=8
    )
    return moments, num_rows


def _rows(block: int) -> int:
    return min(TILE // block, ROWS_PER_MOMENT)
