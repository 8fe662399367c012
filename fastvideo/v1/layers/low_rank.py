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

    def added_to(self, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Float32 sum on ``device``; raises ``ValueError`` for another shape."""
        delta = self.up.to(device, torch.float32)
        if self.down is not None:
            down = self.down.to(device, torch.float32)
            delta = (delta.flatten(1) @ down.flatten(1)).reshape(len(delta), *down.shape[1:])
        if delta.shape != weight.shape:
            raise ValueError(f"the adapter's {self.key} makes {list(delta.shape)}, the weight is {list(weight.shape)}")
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

    def beside(self, other: "LowRankBranch | None") -> "LowRankBranch":
        """Both branches as one."""
        if other is None:
            return self
        return LowRankBranch(torch.cat((other.down, self.down)), torch.cat((other.up, self.up), dim=1))
