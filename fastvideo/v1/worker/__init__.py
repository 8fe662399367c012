"""Processes that do the work; names that need torch are resolved at first use, since flows import this package too."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvideo.v1.worker.executor import Executor
    from fastvideo.v1.worker.gpu_worker import GPUWorker
    from fastvideo.v1.worker.multiproc_executor import MultiProcExecutor

_EXPORTS = {
    "Executor": "fastvideo.v1.worker.executor",
    "GPUWorker": "fastvideo.v1.worker.gpu_worker",
    "MultiProcExecutor": "fastvideo.v1.worker.multiproc_executor",
}
__all__ = ["Executor", "GPUWorker", "MultiProcExecutor"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastvideo.v1.worker' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
