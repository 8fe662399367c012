"""What a layer knows of the processes that it works with."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from fastvideo.v1.distributed.layout import ParallelLayout


@dataclass(frozen=True)
class ParallelGroup:
    """One axis of the world as this process sees it; without ``process_group`` it can shard, not communicate."""

    name: str
    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = field(default=None, repr=False)
    layout: ParallelLayout = field(default=ParallelLayout(), repr=False)

    @property
    def transport(self) -> dist.ProcessGroup:
        assert self.process_group is not None, f"{self.name} group of size {self.size} has no transport"
        return self.process_group

    def shard_size(self, total: int, what: str) -> int:
        """A rank's part of ``total``; raises ``ValueError`` when the group does not divide it."""
        if total % self.size:
            sizes = [size for size in range(1, total + 1) if total % size == 0]
            nearest = min(sizes, key=lambda size: abs(size - self.size), default=1)
            raise ValueError(
                f"{what}={total} must be divisible by the {self.name} size {self.size} of layout {self.layout}; "
                f"nearest: {self.name} size {nearest}"
            )
        return total // self.size

    def shard(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of ``tensor`` along ``dim``, a view."""
        size = self.shard_size(tensor.shape[dim], f"dimension {dim}")
        return tensor.narrow(dim, self.rank * size, size)
