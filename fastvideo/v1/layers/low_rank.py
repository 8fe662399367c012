"""What an adapter adds to a layer (LoRA, arXiv 2106.09685): merged into its weight, or beside it.

Legend: ``i`` input features, ``o`` output features, ``r`` rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class WeightDelta:
    """What an adapter adds to one tensor of a checkpoint: ``strength * up @ down``, or ``strength * up`` without down.

    ``up`` is ``[o, r]`` and ``down`` ``[r, i]``; a convolution's kernel axes follow ``i``. ``key`` is the adapter's.
    """

    key: str
    up: torch.Tensor
    down: torch.Tensor | None
    strength: float

    @property
    def shape(self) -> torch.Size:
        """Of what is added."""
        return self.up.shape if self.down is None else torch.Size((len(self.up), *self.down.shape[1:]))

    def check_fits(self, weight_shape: torch.Size) -> None:
        """Raises ``ValueError`` naming the adapter's key unless the weight is of this shape."""
        if self.shape != weight_shape:
            raise ValueError(f"the adapter's {self.key} makes {list(self.shape)}, the weight is {list(weight_shape)}")

    def added_to(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Float32 sum on ``device``; raises ``ValueError`` for another shape."""
        self.check_fits(weight.shape)
        delta = self.up.to(device, torch.float32)
        if self.down is not None:
            down = self.down.to(device, torch.float32)
            delta = (delta.flatten(1) @ down.flatten(1)).reshape(self.shape)
        return torch.add(weight.to(device, torch.float32), delta, alpha=self.strength)


@dataclass(frozen=True)
class LowRankBranch:
    """A second way through a linear layer, added to the first: ``down`` ``[r, i]``, then ``up`` ``[o, r]``.

    ``up`` carries the strength.
    """

    down: torch.Tensor
    up: torch.Tensor

    def added_to(self, out: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """``out`` ``[..., o]`` and what ``inputs``, together ``[..., i]``, give."""
        parts = self.down.split([x.shape[-1] for x in inputs], dim=1)
        first, *rest = (F.linear(x, down) for x, down in zip(inputs, parts, strict=True))
        return out + F.linear(sum(rest, first), self.up)

    def to(self, device: torch.device) -> "LowRankBranch":
        """The same on ``device``."""
        return LowRankBranch(self.down.to(device), self.up.to(device))

    def beside(self, other: "LowRankBranch | None") -> "LowRankBranch":
        """Both branches as one."""
        if other is None:
            return self
        return LowRankBranch(torch.cat((other.down, self.down)), torch.cat((other.up, self.up), dim=1))
