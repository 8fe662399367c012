"""The groups that a process belongs to: data x cfg x sequence x tensor.

Models ask for a group and call its collectives; at size 1 every collective is the identity, so that a model reads as
single-GPU code. Groups larger than 1 are built here and nowhere else.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ParallelGroup:
    """One axis of the world as this process sees it."""

    name: str
    rank: int = 0
    size: int = 1

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the group; any shape, returned in place."""
        assert self.size == 1, f"{self.name} group of size {self.size} has no transport"
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Concatenation over the group along ``dim``."""
        assert self.size == 1, f"{self.name} group of size {self.size} has no transport"
        return tensor

    def shard_size(self, total: int, what: str) -> int:
        """A rank's part of ``total``; raises ``ValueError`` when the group does not divide it."""
        if total % self.size:
            raise ValueError(f"{what}={total} must be divisible by the {self.name} size {self.size}")
        return total // self.size

    def shard(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of ``tensor`` along ``dim``, a view."""
        size = self.shard_size(tensor.shape[dim], f"dimension {dim}")
        return tensor.narrow(dim, self.rank * size, size)


_TENSOR = ParallelGroup("tensor")
_SEQUENCE = ParallelGroup("sequence")


def get_tp_group() -> ParallelGroup:
    """The tensor-parallel group of this process."""
    return _TENSOR


def get_sp_group() -> ParallelGroup:
    """The sequence-parallel group of this process."""
    return _SEQUENCE
