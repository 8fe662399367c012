"""What a running call carries beside its batch: the current step, callbacks of the caller, seconds per stage.

It keeps metadata out of every signature: models never see it, attention backends and stages may.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fastvideo.v1.attention.strategy import TileStrategy
    from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch


@dataclass
class ForwardContext:
    """One call's context.

    ``on_step`` is called after each denoising step with the batch, whose ``latents``, ``step_index``,
    ``scheduler_state`` and ``skipping_state`` then make a complete checkpoint. ``branch_index`` is 0 while a model
    follows the text, 1 while it sees what is to be avoided. ``on_frames`` receives decoded frames, uint8
    ``[t, h, w, c]``, chunk by chunk in order; with it the batch keeps no frames. ``token_grid`` is the canvas in tokens
    along t, h and w, and ``tile_strategy`` what sliding tile attention follows. ``inputs`` names the fields of the
    request that the batch brings where that is a part of one, a text or an image by itself: stages that read others
    then do not run.
    """

    step_index: int = 0
    branch_index: int = 0
    token_grid: tuple[int, int, int] | None = None
    tile_strategy: "TileStrategy | None" = None
    timings: dict[str, float] = field(default_factory=dict)
    on_step: "Callable[[ForwardBatch], None] | None" = None
    on_frames: "Callable[[torch.Tensor], None] | None" = None
    inputs: "Sequence[str] | None" = None


_context: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


def get_forward_context() -> ForwardContext:
    """The context of the running call; outside of one it raises ``RuntimeError``."""
    context = _context.get()
    if context is None:
        raise RuntimeError("there is no forward context here; wrap the call in set_forward_context()")
    return context


@contextmanager
def set_forward_context(context: ForwardContext | None = None) -> Iterator[ForwardContext]:
    """Makes ``context`` (or a new one) the current one within the block."""
    context = context or ForwardContext()
    token = _context.set(context)
    try:
        yield context
    finally:
        _context.reset(token)
