"""Process groups and collectives. Names are resolved lazily: a layout can be had without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvideo.v1.distributed.group import ParallelGroup
    from fastvideo.v1.distributed.layout import ParallelLayout
    from fastvideo.v1.distributed.parallel_state import get_sp_group, get_tp_group

_EXPORTS = {
    "ParallelGroup": "fastvideo.v1.distributed.group",
    "ParallelLayout": "fastvideo.v1.distributed.layout",
    "get_sp_group": "fastvideo.v1.distributed.parallel_state",
    "get_tp_group": "fastvideo.v1.distributed.parallel_state",
}
__all__ = ["ParallelGroup", "ParallelLayout", "get_sp_group", "get_tp_group"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastvideo.v1.distributed' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
