"""FlashAttention, whichever of versions 4, 3 and 2 is installed, newest first.

The kernel stands behind a custom operator, so that ``torch.compile`` keeps the block around it in one graph.
"""

import re
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fastvideo.v1.attention.backends.abstract import AttentionBackend

# modules that may have it (of 3: the whole build, the forward kernels alone), lowest compute capability it runs on
_VERSIONS = {
    4: (("flash_attn.cute",), (9, 0)),
    3: (("flash_attn_interface", "fa3_fwd_interface"), (9, 0)),
    2: (("flash_attn",), (8, 0)),
}
Kernel = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
_ALLOCATION = re.compile(r'"aten::(new_)?(empty|zeros)')


@cache
def find_kernel(version: int) -> Kernel | None:
    """``flash_attn_func`` of that FlashAttention, if it is installed."""
    for module in _VERSIONS[version][0]:
        parent = module.partition(".")[0]
        if find_spec(parent) is None or ("." in module and find_spec(module) is None):
            continue
        kernel: Kernel | None = getattr(import_module(module), "flash_attn_func", None)
        if kernel is not None:
            return _with_memory_errors(kernel)
    return None


def _with_memory_errors(kernel: Kernel) -> Kernel:
    """``kernel`` that raises ``OutOfMemoryError`` for lack of memory: version 3 tells which of PyTorch's calls failed,
    and not why.
    """

    @wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        try:
            return kernel(*args, **kwargs)
        except RuntimeError as error:
            if _ALLOCATION.search(str(error)):
                raise torch.OutOfMemoryError(f"no memory for FlashAttention's output: {error}") from error
            raise

    return call


@cache
def installed_version() -> int | None:
    """The newest FlashAttention that can be imported here: 4, 3, 2 or None."""
    return next((version for version in _VERSIONS if find_kernel(version) is not None), None)


@cache
def _kernel() -> Kernel:
    version = installed_version()
    kernel = None if version is None else find_kernel(version)
    assert kernel is not None, "the backend was chosen without FlashAttention installed"
    return kernel


@torch.library.custom_op("fastvideo::flash_attention", mutates_args=())
def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool
) -> torch.Tensor:
    out = _kernel()(query, key, value, softmax_scale=scale, causal=causal)
    return out[0] if isinstance(out, tuple) else out


@_flash_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


class FlashAttentionBackend(AttentionBackend):
    """FlashAttention 4 (CuTe DSL), 3 (arXiv 2407.08608) or 2 (arXiv 2307.08691)."""

    joins_rings = True

    @classmethod
    def obstacle(cls, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"it needs bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
        version = installed_version()
        if version is None:
            return "no FlashAttention is installed; pip install flash-attn-4 (Hopper and newer) or flash-attn"
        lowest = _VERSIONS[version][1]
        if torch.cuda.get_device_capability(device) < lowest:
            return f"FlashAttention {version} needs compute capability {lowest[0]}.{lowest[1]}"
        if head_size > (128 if version == 4 else 256):
            return f"FlashAttention {version} has no kernel for head size {head_size}"
        return None

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _flash_attention(query, key, value, self.softmax_scale, self.causal)

    def forward_with_lse(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked = {"return_lse" if installed_version() == 4 else "return_attn_probs": True}
        out, lse, *_ = _kernel()(query, key, value, softmax_scale=self.softmax_scale, causal=self.causal, **asked)
        return out, lse.transpose(1, 2)
