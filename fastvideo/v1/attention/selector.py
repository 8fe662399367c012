"""Which backend a layer gets: the user's explicit choice, else the fastest exact one that can serve it."""

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module

import torch

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.logger import init_logger

logger = init_logger(__name__)

ENVIRONMENT_VARIABLE = "FASTVIDEO_ATTENTION_BACKEND"

# Fastest exact one first; TORCH_SDPA can always serve.
_BACKENDS = {
    _Backend.FLASH_ATTN: "fastvideo.v1.attention.backends.flash_attn:FlashAttentionBackend",
    _Backend.TORCH_SDPA: "fastvideo.v1.attention.backends.sdpa:SDPABackend",
    _Backend.SLIDING_TILE_ATTN: "fastvideo.v1.attention.backends.sliding_tile:SlidingTileBackend",
}


def requested_backend(choice: str | None = None) -> _Backend | None:
    """The explicit choice, if any: ``choice``, else the environment variable. An unknown name raises ``ValueError``."""
    name = choice or os.environ.get(ENVIRONMENT_VARIABLE)
    if not name:
        return None
    if name not in _Backend.__members__:
        raise ValueError(f"attention backend {name!r} does not exist; there are: {', '.join(_Backend)}")
    return _Backend(name)


def select_backend(
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
    supported: Sequence[_Backend],
    requested: _Backend | None = None,
) -> type[AttentionBackend]:
    """The backend class for a layer.

    A ``requested`` backend that the layer supports is taken, or ``ValueError`` says why it cannot be had; a layer that
    does not support it chooses by itself. Unasked, the first of the exact backends that has no obstacle is taken.
    """
    if requested is not None and requested in supported:
        obstacle = _obstacle(requested, head_size, dtype, device)
        if obstacle:
            able = [name for name in supported if _obstacle(name, head_size, dtype, device) is None]
            raise ValueError(
                f"attention backend {requested} cannot be had: {obstacle}; here you could have: {', '.join(able)}"
            )
        return _announce(requested, head_size, device.type)
    for name in _BACKENDS:
        allowed = name in supported or name is _Backend.TORCH_SDPA
        if allowed and _load(name).exact and _obstacle(name, head_size, dtype, device) is None:
            return _announce(name, head_size, device.type)
    raise AssertionError("TORCH_SDPA can always serve")


def _obstacle(name: _Backend, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
    if name not in _BACKENDS:
        return "this version does not have it"
    return _load(name).obstacle(head_size, dtype, device)


def _load(name: _Backend) -> type[AttentionBackend]:
    module, _, class_name = _BACKENDS[name].partition(":")
    return getattr(import_module(module), class_name)


@cache
def _announce(name: _Backend, head_size: int, device_type: str) -> type[AttentionBackend]:
    logger.info("attention backend %s for head size %d on %s", name, head_size, device_type)
    return _load(name)
