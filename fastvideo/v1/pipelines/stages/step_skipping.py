"""Step skipping around the denoising loop: which steps are forced, and how an interrupted loop gets its cache back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.logger import init_logger
from fastvideo.v1.models.dits.skip_rule import rule_for
from fastvideo.v1.models.dits.step_cache import StepCache
from fastvideo.v1.models.schedulers.base import SchedulerState

logger = init_logger(__name__)


class StepSkipping:
    """A batch's :class:`StepCache`, fed by the loop; one that ``switches`` to another transformer computes there.

    Its state is small and the same on every rank: sums, and the latents of the few steps whose repetition fills the
    cache again, signals and residuals, bit for bit. So it serves another layout, too.
    """

    def __init__(self, cache: StepCache, num_steps: int, switches: Sequence[int] = ()) -> None:
        self._cache = cache
        self._forced = cache.rule.forced_steps(num_steps) | set(switches)
        self._latents: dict[int, torch.Tensor] = {}
        if len(self._forced) == num_steps:
            logger.warning("num_inference_steps=%d leaves no step to skip: all are first or last ones", num_steps)

    def begin(self, step: int, latents: torch.Tensor) -> None:
        """Must be called before each step with the latents that it starts from, ``[b, c, t, h, w]``."""
        needed = {branch.computed_at for branch in self._cache.branches}
        self._latents = {at: kept for at, kept in self._latents.items() if at in needed} | {step: latents}
        if step in self._forced:
            self._cache.force(step)
        else:
            self._cache.decide()

    def state_dict(self) -> SchedulerState:
        """What :meth:`restore` needs after a step, under names of its own; the latents are shared, not copied."""
        state: SchedulerState = {}
        for index, branch in enumerate(self._cache.branches):
            state[f"estimated_change_{index}"] = branch.estimated_change
            state[f"computed_at_{index}"] = branch.computed_at
        return state | {f"latents_{step}": latents for step, latents in self._latents.items()}

    def restore(self, state: SchedulerState, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
        """Goes on from ``state_dict``: yields steps and latents, ``[b, c, t, h, w]``, that the caller must predict."""
        for index, branch in enumerate(self._cache.branches):
            branch.estimated_change = float(state[f"estimated_change_{index}"])
            branch.computed_at = int(state[f"computed_at_{index}"])
        for name, latents in state.items():
            if isinstance(latents, torch.Tensor):
                self._latents[int(name.removeprefix("latents_"))] = latents.to(device)
        self._cache.repeat()
        yield from sorted(self._latents.items())


@contextmanager
def step_skipping(args: FastVideoArgs, transformers: Sequence[Any], num_branches: int) -> Iterator[StepSkipping | None]:
    """Step skipping as ``args`` ask for it, of a batch whose steps are done by ``transformers``, one a step; or None.

    Raises ``ValueError`` for models that cannot skip steps, or for which there are no coefficients.
    """
    if args.step_skip_threshold is None:
        yield None
        return
    models = list(dict.fromkeys(transformers))
    for model in models:
        model.check_skips_steps()
    rule = rule_for(models[0].config, len(models), args.step_skip_rule)
    cache = StepCache(rule, args.step_skip_threshold, num_branches)
    switches = [step for step in range(1, len(transformers)) if transformers[step] is not transformers[step - 1]]
    for model in models:
        model.step_cache = cache
    try:
        yield StepSkipping(cache, len(transformers), switches)
    finally:
        for model in models:
            model.step_cache = None
