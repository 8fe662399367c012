"""How much arithmetic a forward is, and how fast this machine multiplies matrices.

A matrix product of [m, k] by [k, n] counts 2 m k n floating-point operations (PaLM, arXiv 2204.02311, appendix B);
dense attention of s queries over l keys counts 4 s l d for a width of d. Element-wise work is not counted.
"""

import torch

from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.models.dits.wan import WanTransformerConfig


def wan_flops(config: WanTransformerConfig, num_tokens: int, num_text_tokens: int) -> int:
    """Floating-point operations of one forward of one sample."""
    width = config.hidden_size
    projections = 2 * num_tokens * width * (6 * width + 2 * config.ffn_dim) + 4 * num_text_tokens * width * width
    attention = 4 * num_tokens * (num_tokens + num_text_tokens) * width
    return config.num_layers * (projections + attention)


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Measured FLOP/s of a square matrix product on random data, the best of ten."""
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    timing = interleave({"matmul": lambda: a @ b}, 10, device)["matmul"]
    return 2 * size**3 / timing.low
