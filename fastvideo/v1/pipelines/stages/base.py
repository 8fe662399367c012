"""What a stage is: verify what it reads, run, verify what it wrote, under a timer."""

import time
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch


class PipelineStage(ABC):
    """One step of a pipeline.

    ``phase`` is the phase it belongs to; None takes that of the stage before it. ``version`` is part of the key under
    which results are stored: raise it when results change. ``reads`` names the fields of the request on which an encode
    stage's output depends.
    """

    phase: ClassVar[Phase | None] = None
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        name = type(self).__name__
        self.verify_input(batch, fastvideo_args)
        with torch.profiler.record_function(name):
            start = time.perf_counter()
            batch = self.forward(batch, fastvideo_args)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            timings = get_forward_context().timings
            timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
        self.verify_output(batch, fastvideo_args)
        return batch

    @abstractmethod
    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        """Reads fields of ``batch``, writes others, returns it."""

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        """Raises ``ValueError`` when ``batch`` lacks what this stage reads."""

    def verify_output(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        """Raises when what this stage wrote cannot be right."""


def check_finite(batch: ForwardBatch, *names: str, mend: str) -> None:
    """Raises ``FloatingPointError`` if a tensor of these names that ``batch`` has is not finite everywhere."""
    for name in names:
        tensor = getattr(batch, name)
        if tensor is not None and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"encoding gave NaN or infinite {name}; {mend}")
