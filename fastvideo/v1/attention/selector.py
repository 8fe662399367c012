"""Which backend a layer gets: the user's explicit choice, else the fastest exact one that can serve it.

A user's own backend joins through :func:`register_attention_backend` and is chosen by name only.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module

import torch

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.fastvideo_args import attention_backend_name
from fastvideo.v1.logger import init_logger
from fastvideo.v1.plugins import load_plugins

logger = init_logger(__name__)

# Fastest exact one first; TORCH_SDPA can always serve.
_BACKENDS: dict[str, str] = {
    _Backend.FLASH_ATTN: "fastvideo.v1.attention.backends.flash_attn:FlashAttentionBackend",
    _Backend.TORCH_SDPA: "fastvideo.v1.attention.backends.sdpa:SDPABackend",
    _Backend.SLIDING_TILE_ATTN: "fastvideo.v1.attention.backends.sliding_tile:SlidingTileBackend",
    _Backend.FP8_ATTN: "fastvideo.v1.attention.backends.fp8:Fp8AttentionBackend",
}
_REGISTERED: dict[str, str] = {}


def register_attention_backend(name: str, location: str) -> None:
    """Makes the :class:`AttentionBackend` at ``location``, written ``module:Class``, one that can be asked for.

    Raises ``ValueError`` for the name of a backend that is built in.
    """
    if name in _BACKENDS:
        raise ValueError(f"attention backend {name!r} is built in; register yours under another name")
    _REGISTERED[name] = location


def requested_backend(choice: str | None = None) -> str | None:
    """The explicit choice, if any: ``choice``, else the environment variable. An unknown name raises ``ValueError``."""
    name = attention_backend_name(choice)
    if name is None:
        return None
    load_plugins()
    if name in _Backend.__members__:
        return _Backend(name)
    if name not in _REGISTERED:
        raise ValueError(
            f"attention backend {name!r} does not exist; there are: {', '.join([*_Backend, *_REGISTERED])} "
            "(register_attention_backend adds one)"
        )
    return name


def select_backend(
    head_size: int,
    dtype: torch.dtype,
    device: torch.device,
    supported: Sequence[str],
    requested: str | None = None,
    takes_approximate: bool = False,
) -> type[AttentionBackend]:
    """The backend class for a layer.

    A ``requested`` backend that may serve the layer is taken, or ``ValueError`` says why it cannot be had; a layer that
    it may not serve chooses by itself. Unasked, the first of the exact backends that has no obstacle is taken.
    """
    if requested is not None and _may_serve(requested, supported, takes_approximate):
        obstacle = _obstacle(requested, head_size, dtype, device)
        if obstacle:
            able = [name for name in supported if _obstacle(name, head_size, dtype, device) is None]
            raise ValueError(
                f"attention backend {requested} cannot be had: {obstacle}; here you could have: {', '.join(able)}"
            )
        return _announce(requested, head_size, device.type)
    for name in _BACKENDS:
        allowed = name in supported or name == _Backend.TORCH_SDPA
        if allowed and _load(name).exact and _obstacle(name, head_size, dtype, device) is None:
            return _announce(name, head_size, device.type)
    raise AssertionError("TORCH_SDPA can always serve")


def _may_serve(name: str, supported: Sequence[str], takes_approximate: bool) -> bool:
    """A layer names the built-in backends it supports; it need not have heard of a plugin's."""
    return name in supported or (name in _REGISTERED and (takes_approximate or _load(name).exact))


def _obstacle(name: str, head_size: int, dtype: torch.dtype, device: torch.device) -> str | None:
    if name not in _BACKENDS and name not in _REGISTERED:
        return "this version does not have it"
    return _load(name).obstacle(head_size, dtype, device)


def _load(name: str) -> type[AttentionBackend]:
    module, _, class_name = (_BACKENDS | _REGISTERED)[name].partition(":")
    return getattr(import_module(module), class_name)


@cache
def _announce(name: str, head_size: int, device_type: str) -> type[AttentionBackend]:
    logger.info("attention backend %s for head size %d on %s", name, head_size, device_type)
    return _load(name)
