"""A transformer's blocks, left out at steps at which they would do nearly what they did before (TeaCache, arXiv
2411.19108): an approximate mode, chosen by ``FastVideoArgs.step_skip_threshold``.

A transformer hands in its tokens, its blocks, and the signal that tells how far its input has moved: of Wan the
timestep projection, of HunyuanVideo the first block's modulated input. Each branch of guidance has a sum of its own,
of the changes that the signal's relative L1 distances, from each step to the next, are estimated to make. While it is
under the threshold, the blocks' residual is reused; otherwise they run and the sum starts over.

Legend: ``b`` samples (which share a decision), ``s`` tokens of this rank, ``d`` width.
"""

from dataclasses import dataclass

import torch

from fastvideo.v1.distributed.communication import all_reduce
from fastvideo.v1.distributed.parallel_state import get_model_group
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.models.base import Blocks
from fastvideo.v1.models.dits.skip_rule import SkipRule


@dataclass
class BranchState:
    """What one branch of guidance remembers; ``computed_at`` is the last step at which its blocks ran."""

    estimated_change: float = 0.0
    computed_at: int = -1
    signal: torch.Tensor | None = None
    residual: torch.Tensor | None = None


class StepCache:
    """Decides at each step of a batch, branch by branch, whether a transformer's blocks run.

    A decision takes one wait for the device, and at several ranks one sum of a few numbers over all that work on the
    batch, so that all decide alike; forced steps take none. Every rank knows the sums of all branches, not its own
    alone.
    """

    def __init__(self, rule: SkipRule, threshold: float, num_branches: int) -> None:
        self.rule = rule
        self.threshold = threshold
        self.branches = [BranchState() for _ in range(num_branches)]
        self._decides = False

    def force(self, step: int) -> None:
        """The blocks of every branch run at ``step``, which comes next."""
        self._decides = False
        for branch in self.branches:
            branch.estimated_change, branch.computed_at = 0.0, step

    def decide(self) -> None:
        """At the step that comes next the change decides."""
        self._decides = True

    def repeat(self) -> None:
        """The step that comes next has been before: the blocks of a branch run where it says that they did last."""
        self._decides = False

    def run(self, tokens: torch.Tensor, signal: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """``blocks(tokens)`` or nearly that, ``[b, s, d]``; ``signal`` is this rank's part, or all of it on each."""
        context = get_forward_context()
        if self._decides:
            self._decide(context.branch_index, context.step_index, signal)
        branch = self.branches[context.branch_index]
        branch.signal = signal
        if branch.residual is not None and branch.computed_at != context.step_index:
            return tokens + branch.residual
        out = blocks(tokens)
        branch.residual = out - tokens
        return out

    def _decide(self, index: int, step: int, signal: torch.Tensor) -> None:
        """Adds to the sums of all branches that ranks are computing now."""
        previous = self.branches[index].signal
        assert previous is not None, "the first step is always computed"
        sums = torch.zeros(len(self.branches), 2, dtype=torch.float64, device=signal.device)
        sums[index] = torch.stack(l1_change(signal, previous))
        for branch, (change, size) in zip(self.branches, all_reduce(sums, get_model_group()).tolist(), strict=True):
            if size == 0:  # no rank is at this branch
                continue
            branch.estimated_change += self.rule.estimate(change / size)
            if not max(branch.estimated_change, 0.0) < self.threshold:
                branch.estimated_change, branch.computed_at = 0.0, step


def l1_change(new: torch.Tensor, old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of ``|new - old|`` and of ``|old|``, float32 scalars; their quotient is the relative L1 distance."""
    change = torch.linalg.vector_norm(new - old, 1, dtype=torch.float32)
    return change, torch.linalg.vector_norm(old, 1, dtype=torch.float32).clamp(min=1e-30)
