"""`fastvideo fit-step-skipping`: coefficients of step skipping for a model, fitted on its own videos.

At every step of videos made with all steps computed, two numbers are seen: how far the signal moved since the step
before, and how far what the blocks add to the tokens did, over the size of what they return, which is what reuse gets
wrong. A polynomial through them is the rule (arXiv 2411.19108, section 3.3).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastvideo.v1.entrypoints.video_generator import VideoGenerator
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.models.base import Blocks
from fastvideo.v1.models.dits.skip_rule import SkipRule
from fastvideo.v1.models.dits.step_cache import l1_change
from fastvideo.v1.worker.executor import UniProcExecutor

DEGREE = 4


class _Seen(NamedTuple):
    step: int
    signal: torch.Tensor
    residual: torch.Tensor


class ChangeRecorder:
    """Stands where a step cache would, runs every block, and keeps (distance, change) pairs."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float]] = []
        self._last: dict[int, _Seen] = {}  # by branch

    def run(self, tokens: torch.Tensor, signal: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """``blocks(tokens)``, ``[b, s, d]``."""
        context = get_forward_context()
        out = blocks(tokens)
        now = _Seen(context.step_index, signal, out - tokens)
        last = self._last.get(context.branch_index)
        if last is not None and last.step == now.step - 1:
            distance, size = l1_change(signal, last.signal)
            change, _ = l1_change(now.residual, last.residual)
            whole = torch.linalg.vector_norm(out, 1, dtype=torch.float32)
            self.pairs.append(((distance / size).item(), (change / whole).item()))
        self._last[context.branch_index] = now
        return out


def fit_rule(pairs: Sequence[tuple[float, float]], first_steps: int, last_steps: int) -> SkipRule:
    """The rule whose polynomial of degree 4 comes nearest to ``pairs`` of distance and change in mean square.

    Raises ``ValueError`` for fewer different distances than the polynomial has coefficients.
    """
    distances, changes = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if len(np.unique(distances)) <= DEGREE:
        raise ValueError(
            f"{len(np.unique(distances))} different distances cannot fix a polynomial of degree {DEGREE}; take at "
            f"least {DEGREE + 2} num_inference_steps"
        )
    polynomial = np.polynomial.Polynomial.fit(distances, changes, DEGREE).convert()
    coefficients = tuple(float(value) for value in polynomial.coef[::-1])
    return SkipRule(coefficients=coefficients, first_steps=first_steps, last_steps=last_steps)


def fit_step_skipping(
    model: str, prompts: Sequence[str], first_steps: int, last_steps: int, **sampling: Any
) -> SkipRule:
    """Makes one video a prompt and returns the rule for this model; ``sampling`` are fields of ``SamplingParams``.

    Two experts share one rule. Polynomials hold where they were fitted: take the steps that runs will have.
    """
    executor = UniProcExecutor(FastVideoArgs(model_path=model))
    generator, pipeline = VideoGenerator(executor), executor.worker.pipeline
    request = pipeline.sampling_defaults().with_overrides(**sampling)
    recorders = []
    for transformer in (
        pipeline.modules[name] for name in ("transformer", "transformer_2") if name in pipeline.modules
    ):
        transformer.check_skips_steps()
        transformer.step_cache = ChangeRecorder()
        recorders.append(transformer.step_cache)
    for number, prompt in enumerate(prompts):
        generator.generate_video(prompt, **{**sampling, "seed": request.seed + number})
    pairs = [pair for recorder in recorders for pair in recorder.pairs]
    return fit_rule(pairs, first_steps, last_steps)
