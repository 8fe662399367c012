"""What a sample can do wrong by itself, and what is the machine's or the store's fault."""

import traceback
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist

from fastvideo.v1.dataset.objects.store_errors import StoreMisconfigured
from fastvideo.v1.worker.failures import Preempted

SAMPLE_ERRORS = (ValueError, ArithmeticError)
"""A sample's own failures that leave the process as it was."""

_MACHINE_ERRORS = (StoreMisconfigured, OSError, Preempted, dist.DistError)
_MACHINE_WORDS = ("uncorrectable", "hardware error", "busy or unavailable")  # of CUDA's errors
_OTHERS_SHARE = 1 / 8  # of a GPU's memory: what one process has there beside its tensors is less


@dataclass(frozen=True)
class SampleFailure:
    """One line, and where it came from."""

    error: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The failure of the call that has just raised ``error``."""
        return cls(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def is_of_the_machine(error: Exception) -> bool:
    """Whether another sample might have met with ``error`` as well; memory that other processes hold is theirs."""
    if isinstance(error, torch.OutOfMemoryError):
        return not _has_memory_alone()
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _MACHINE_WORDS):
        return True
    return isinstance(error, _MACHINE_ERRORS)


def _has_memory_alone() -> bool:
    if not torch.cuda.is_initialized():
        return True
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved() < _OTHERS_SHARE * total
