"""Triton: residual, layer norm and modulation in one pass over the tokens.

Every program walks ``ROWS`` tokens and reads the modulation again for each: it stays in the multiprocessor's own cache,
which the tokens pass by (``.cg``); in registers it would leave room for few tokens at a time. Statistics and arithmetic
are float32.
"""

import torch
import triton
import triton.language as tl

ROWS = 4


@triton.jit
def _residual_norm_kernel(
    x_ptr, y_ptr, gate_ptr, scale_ptr, shift_ptr, sum_ptr, out_ptr,
    num_tokens, width, modulation_stride, gate_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_GATE: tl.constexpr, SCALE_OFFSET: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        if token < num_tokens:
            offsets = (batch * num_tokens + token).to(tl.int64) * width + columns
            x = tl.load(x_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
            if HAS_RESIDUAL:
                y = tl.load(y_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
                if HAS_GATE:
                    y *= tl.load(gate_ptr + batch * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
                rounded = (x + y).to(sum_ptr.dtype.element_ty)
                tl.store(sum_ptr + offsets, rounded, mask=inside)
                x = rounded.to(tl.float32)
            mean = tl.sum(x, axis=0) / width
            centred = tl.where(inside, x - mean, 0.0)
            inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
            modulation = batch * modulation_stride + columns
            scale = tl.load(scale_ptr + modulation, mask=inside, other=0.0).to(tl.float32) + SCALE_OFFSET
            shift = tl.load(shift_ptr + modulation, mask=inside, other=0.0).to(tl.float32)
            out = centred * inverse * scale + shift
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


def norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, scale_offset: float) -> torch.Tensor:
    """``layer_norm(x) * (scale_offset + scale) + shift``; ``x`` ``[b, s, d]``, the others ``[b or 1, 1, d]``."""
    out = torch.empty_like(x)
    stride = 0 if scale.shape[0] == 1 else scale.stride(0)
    _residual_norm_kernel[_grid(x)](
        x, x, scale, scale, shift, x, out, x.shape[1], x.shape[2], stride, 0, eps,
        HAS_RESIDUAL=False, HAS_GATE=False, SCALE_OFFSET=scale_offset, **_launch(x),
    )  # fmt: skip
    return out


def residual_norm(
    x: torch.Tensor,
    y: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    scale_offset: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + y * gate`` and its modulated layer norm, as in :func:`norm`; without ``gate``, ``x + y``."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    stride = 0 if scale.shape[0] == 1 else scale.stride(0)
    gate_stride = 0 if gate is None or gate.shape[0] == 1 else gate.stride(0)
    _residual_norm_kernel[_grid(x)](
        x, y, scale if gate is None else gate, scale, shift, total, out, x.shape[1], x.shape[2], stride, gate_stride,
        eps, HAS_RESIDUAL=True, HAS_GATE=gate is not None, SCALE_OFFSET=scale_offset, **_launch(x),
    )  # fmt: skip
    return total, out


def gated_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x + y * gate``; ``x`` and ``y`` ``[b, s, d]``, ``gate`` ``[b or 1, 1, d]``."""
    out = torch.empty_like(x)
    gate_stride = 0 if gate.shape[0] == 1 else gate.stride(0)
    _gated_residual_kernel[_grid(x)](x, y, gate, out, x.shape[1], x.shape[2], gate_stride, **_launch(x))
    return out
