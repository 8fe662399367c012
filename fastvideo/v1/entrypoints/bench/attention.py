"""`fastvideo bench attention`: self-attention kernels on a canvas at full size, dense and in sliding tiles."""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch

from fastvideo.v1.attention.backends.abstract import _Backend
from fastvideo.v1.attention.backends.sliding_tile import flex_blocks, sliding_tile_attention, sparse_flash_blocks
from fastvideo.v1.attention.layer import LocalAttention
from fastvideo.v1.attention.sliding_tiles import Size3, density, tile_layout
from fastvideo.v1.entrypoints.bench.roofline import matmul_ceiling
from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.loader.component import resolve_device

HEAD_SIZE = 128
DENSE = {"flash": _Backend.FLASH_ATTN, "sdpa": _Backend.TORCH_SDPA, "fp8": _Backend.FP8_ATTN}
# Canvas in tokens, text tokens, heads, and how many heads use which window: those that published strategies give.
WORKLOADS: dict[str, tuple[Size3, int, int, dict[Size3, int]]] = {
    "wan_14B": (
        (18, 48, 80),
        0,
        40,
        {(3, 1, 10): 7, (1, 5, 7): 7, (3, 3, 3): 7, (1, 6, 5): 7, (1, 3, 10): 6, (3, 6, 1): 6},
    ),
    "hunyuan": (
        (30, 48, 80),
        90,
        24,
        {(5, 3, 3): 10, (1, 6, 10): 8, (3, 3, 5): 3, (5, 1, 10): 2, (5, 6, 1): 1},
    ),
    "wan_14B_480p": ((21, 30, 52), 0, 40, {(4, 1, 7): 10, (1, 4, 4): 10, (3, 3, 3): 10, (1, 3, 7): 10}),
}


def bench_attention(workload: str, cases: list[str], rounds: int, device_choice: str = "auto") -> dict[str, Any]:
    """Milliseconds and TFLOP/s of the work that is kept, in bfloat16, for each case.

    Cases: ``flash``, ``sdpa`` and ``fp8`` (dense), ``sliding`` (tokens in the model's order), ``sliding+kernel`` and
    ``flex+kernel`` (tokens already in tiles). The error is the relative RMS distance of ``sliding`` to FlexAttention on
    the same windows.
    """
    device = resolve_device(device_choice)
    grid, num_text, num_heads, shares = WORKLOADS[workload]
    windows = tuple(window for window, count in shares.items() for _ in range(count))
    windows = tuple(islice(cycle(windows), num_heads))
    layout = tile_layout(grid, num_text, device)
    tokens = grid[0] * grid[1] * grid[2] + num_text
    query, key, value = (torch.randn(1, tokens, num_heads, HEAD_SIZE, device=device).bfloat16() for _ in range(3))
    tiled = (query[:, layout.source], key[:, layout.source], value[:, layout.source])
    scale = HEAD_SIZE**-0.5
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "sliding": lambda: sliding_tile_attention(query, key, value, layout, windows, scale),
        "sliding+kernel": lambda: sparse_flash_blocks(*tiled, layout, windows, scale),
        "flex+kernel": lambda: flex_blocks(*tiled, layout, windows, scale),
    }
    for name, backend in DENSE.items():
        if name in cases:
            layer = LocalAttention(num_heads, HEAD_SIZE, supported_attention_backends=(backend,))
            layer.select(device, torch.bfloat16, backend)
            runs[name] = lambda layer=layer: layer(query, key, value)  # type: ignore[misc]
    chosen = {case: runs[case] for case in cases}
    with torch.inference_mode():
        expected = flex_blocks(*tiled, layout, windows, scale)[:, layout.place].float()
        error = float((runs["sliding"]().float() - expected).norm() / expected.norm())
        for run in chosen.values():
            run(), run()
        timings = interleave(chosen, rounds, device)
    kept = density(layout, windows)
    flops = 4 * tokens**2 * num_heads * HEAD_SIZE
    rows = []
    for case, timing in timings.items():
        work = flops if case in DENSE else flops * kept
        rows.append(
            {
                "case": case,
                "ms": timing.median * 1e3,
                "low": timing.low * 1e3,
                "high": timing.high * 1e3,
                "kept_tflops": work / timing.median / 1e12,
            }
        )
    return {
        "workload": workload,
        "grid": grid,
        "text": num_text,
        "heads": num_heads,
        "positions": len(layout.source),
        "density": kept,
        "error": error,
        "ceiling_tflops": matmul_ceiling(device, torch.bfloat16) / 1e12,
        "rows": rows,
    }
