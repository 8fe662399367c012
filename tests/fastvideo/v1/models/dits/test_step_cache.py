"""When blocks run and when their residual stands in for them, in one process and in several."""

import pytest
import torch

from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, get_cfg_group, get_sp_group, init_world
from fastvideo.v1.forward_context import ForwardContext, set_forward_context
from fastvideo.v1.models.dits.skip_rule import SkipRule
from fastvideo.v1.models.dits.step_cache import StepCache
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

SAME = SkipRule(coefficients=(1.0, 0.0), first_steps=1, last_steps=1)  # estimates the distance itself
STEPS = 6


class CountedBlocks:
    """Adds twice the number of its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return tokens + 2 * self.calls


def run_branch(cache: StepCache, branch: int, step: int, signal: torch.Tensor) -> tuple[bool, torch.Tensor]:
    """Whether the blocks ran, and what they or their residual added to the tokens."""
    tokens, blocks = torch.randint(100, (1, 3, 4)).float(), CountedBlocks()
    with set_forward_context(ForwardContext(step_index=step, branch_index=branch)):
        out = cache.run(tokens, signal, blocks)
    return blocks.calls == 1, out - tokens


def test_blocks_run_when_the_sum_of_changes_reaches_the_threshold():
    cache, ran = StepCache(SAME, 0.25, 1), []
    for step in range(8):
        signal = torch.full((1, 2, 4), 1.1**step)  # each step a tenth from the one before
        cache.decide() if step else cache.force(step)
        ran.append(run_branch(cache, 0, step, signal)[0])
    assert ran == [True, False, False, True, False, False, True, False]


def test_each_branch_has_a_sum_of_its_own():
    cache, ran = StepCache(SAME, 0.25, 2), []
    for step in range(5):
        cache.decide() if step else cache.force(step)
        signals = torch.full((1, 2), 1.1**step), torch.full((1, 2), 1.5**step)
        ran.append([run_branch(cache, branch, step, signal)[0] for branch, signal in enumerate(signals)])
    assert ran == [[True, True], [False, True], [False, True], [True, True], [False, True]]


def test_the_residual_is_that_of_the_last_run():
    cache = StepCache(SAME, 10.0, 2)
    cache.force(0)
    signal = torch.randn(1, 2, 4)
    added = [run_branch(cache, branch, 0, signal)[1] for branch in range(2)]
    cache.branches[1].residual = added[1] + 5
    cache.decide()
    for branch in range(2):
        ran, again = run_branch(cache, branch, 1, signal + 0.1)
        assert not ran and torch.equal(again, cache.branches[branch].residual)
    assert torch.equal(again, added[1] + 5)


def test_nothing_is_below_a_threshold_of_zero():
    cache = StepCache(SkipRule(coefficients=(-3.0,), first_steps=1, last_steps=0), 0.0, 1)
    for step in range(4):
        cache.decide() if step else cache.force(step)
        assert run_branch(cache, 0, step, torch.ones(1, 2))[0]


def test_ranks_decide_alike():
    signals = torch.rand(STEPS, 2, 4, 3).cumsum(0) + 1  # [step, branch, tokens, channels]
    cache, ran = StepCache(SAME, 0.8, 2), []
    for step in range(STEPS):
        cache.decide() if step else cache.force(step)
        ran.append([run_branch(cache, branch, step, signals[step, branch])[0] for branch in range(2)])
    sums = [branch.estimated_change for branch in cache.branches]
    run_processes(2, _decide_on_every_rank, signals, ran, sums)


def _decide_on_every_rank(rank: int, signals: torch.Tensor, expected: list[list[bool]], sums: list[float]) -> None:
    for layout in (ParallelLayout(cfg=2), ParallelLayout(ulysses=2), ParallelLayout(tensor=2)):
        init_world(layout, "cpu", TIMEOUT)
        sequence, guidance = get_sp_group(), get_cfg_group()
        cache = StepCache(SAME, 0.8, 2)
        mine = range(2)[guidance.rank :: guidance.size]
        for step in range(STEPS):
            cache.decide() if step else cache.force(step)
            for branch in mine:
                signal = sequence.shard(signals[step, branch], dim=0)
                assert run_branch(cache, branch, step, signal)[0] == expected[step][branch], f"{layout}, step {step}"
        for branch, change in zip(cache.branches, sums, strict=True):
            assert abs(branch.estimated_change - change) < 1e-5, "every rank knows the sums of both branches"
        close_world()
