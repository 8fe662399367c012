"""What an executor and its worker processes say to each other, pickled."""

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs


@dataclass(frozen=True)
class Start:
    """The first that a worker hears: its settings, and for how many seconds it waits for other ranks."""

    fastvideo_args: FastVideoArgs
    collective_seconds: float


@dataclass(frozen=True)
class Call:
    """A method of the worker, or with ``wants_steps`` its ``execute_forward`` with news of each step."""

    method: str
    arguments: tuple[Any, ...] = ()
    wants_steps: bool = False


@dataclass(frozen=True)
class Step:
    """So many denoising steps are done."""

    step_index: int


@dataclass(frozen=True)
class Done:
    """What a call returned; ``frames_shape`` is that of frames which lie in the shared file instead."""

    value: Any
    frames_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Failed:
    """What a call raised, when on the host's monotonic clock, and whether only because another rank was gone."""

    error: Exception
    trace: str
    at: float
    by_others: bool


def pack(message: object) -> bytes:
    """Pickles with every tensor on the CPU: whoever reads it neither needs a GPU nor takes memory of one."""
    packed = io.BytesIO()
    _HostPickler(packed).dump(message)
    return packed.getvalue()


class _HostPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor) and obj.is_cuda:
            return obj.cpu().__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return NotImplemented
