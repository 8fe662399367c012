"""One process on one device: a pipeline built for some phases, and calls of it."""

import os
from collections.abc import Sequence

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline


class GPUWorker:
    """Owns this rank's device and its pipeline; ``rank`` and ``world_size`` are torchrun's."""

    def __init__(self, fastvideo_args: FastVideoArgs, phases: Sequence[Phase] = ALL_PHASES) -> None:
        self.fastvideo_args = fastvideo_args
        self.phases = tuple(phases)
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._pipeline: ComposedPipelineBase | None = None

    def init_device(self) -> torch.device:
        """Takes the device of this process's local rank."""
        if self.fastvideo_args.device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            torch.backends.cudnn.benchmark = True  # the VAE's few shapes recur in every video
        return resolve_device(self.fastvideo_args.device)

    @property
    def device_name(self) -> str:
        """What the ledger says the work was done on."""
        device = resolve_device(self.fastvideo_args.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def load(self) -> None:
        """Builds the pipeline and loads what its phases need."""
        self._pipeline = build_pipeline(self.fastvideo_args, self.phases)

    @property
    def pipeline(self) -> ComposedPipelineBase:
        """The loaded pipeline."""
        assert self._pipeline is not None, "load() comes first"
        return self._pipeline

    def execute_forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        """Runs the built phases on ``batch``."""
        return self.pipeline.forward(batch, context)
