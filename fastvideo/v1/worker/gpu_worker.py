"""One process on one device: a pipeline built for some phases, and calls of it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from fastvideo.v1.attention.layer import LocalAttention
from fastvideo.v1.distributed.parallel_state import close_world, init_world
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.models.loader.adapter import set_adapter, tell_of_one_expert
from fastvideo.v1.models.loader.component import resolve_device
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline
from fastvideo.v1.sampling_params import SamplingParams


class GPUWorker:
    """Owns this rank's device, its place in the world and its pipeline; ``rank`` and ``world_size`` are torchrun's."""

    def __init__(self, fastvideo_args: FastVideoArgs, phases: Sequence[Phase] = ALL_PHASES) -> None:
        self.fastvideo_args = fastvideo_args
        self.phases = tuple(phases)
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._pipeline: ComposedPipelineBase | None = None

    def init_device(self, timeout: timedelta = timedelta(minutes=10)) -> torch.device:
        """Takes the device of this process's local rank and joins the others of its layout, if there are any.

        ``timeout`` is how long one waits for another. Raises ``ValueError`` for a layout that is not of all processes.
        """
        layout = self.fastvideo_args.layout
        layout.check_num_processes(self.world_size)
        device = take_device(self.fastvideo_args.device)
        if layout.size > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timeout)
            init_world(layout, device.type, timeout)
        return device

    def shutdown(self) -> None:
        """Frees the pipeline, and leaves the world that :meth:`init_device` joined."""
        self._pipeline = None
        close_world()
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def device_name(self) -> str:
        """The name that its maker gave the device, or "cpu"."""
        device = resolve_device(self.fastvideo_args.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    @property
    def made_on(self) -> str:
        """What the ledger says the work was done on: the device, and in brackets what else of the job decides on bits:
        the attention backends of the loaded models, and the layout where a sample has several processes.
        """
        models = [model for model in self.pipeline.modules.values() if isinstance(model, nn.Module)]
        layers = [layer for model in models for layer in model.modules() if isinstance(layer, LocalAttention)]
        backends = {type(layer.backend).__name__.removesuffix("Backend") for layer in layers if layer.backend}
        layout = replace(self.fastvideo_args.layout, data=1)
        details = [*sorted(backends), *([layout.brief] if layout.size > 1 else [])]
        return f"{self.device_name} ({', '.join(details)})" if details else self.device_name

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

    def sampling_defaults(self) -> SamplingParams:
        """What a request of this checkpoint has where it says nothing."""
        return self.pipeline.sampling_defaults()

    def set_lora(self, path: str | None, scale: float) -> None:
        """See :meth:`~fastvideo.v1.entrypoints.video_generator.VideoGenerator.set_lora`."""
        device = resolve_device(self.fastvideo_args.device)
        set_adapter(self.pipeline.get_module("transformer"), path, scale, device)
        if path and "transformer_2" in self.pipeline.modules:
            tell_of_one_expert(path)


def take_device(choice: str) -> torch.device:
    """The device of ``FastVideoArgs.device`` that is this process's by its local rank, made the current one."""
    if choice != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.backends.cudnn.benchmark = True  # the VAE's few shapes recur in every video
    return resolve_device(choice)
