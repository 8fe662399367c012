"""How fast this machine multiplies matrices: the ceiling that forwards are held against."""

import torch

from fastvideo.v1.entrypoints.bench.timing import interleave


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Measured FLOP/s of a square matrix product on random data, the best of ten."""
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    timing = interleave({"matmul": lambda: a @ b}, 10, device)["matmul"]
    return 2 * size**3 / timing.low
