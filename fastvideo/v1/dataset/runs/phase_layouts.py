"""Which layout each phase of a run works in, and why: chosen from the checkpoint, the canvas and the GPUs of a job."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.distributed.choice import (
    LayoutChoice,
    choose_for_weights,
    choose_layout,
    choose_tails,
    layouts_that_divide,
)
from fastvideo.v1.distributed.cluster import GIB, Cluster
from fastvideo.v1.distributed.cost import Workload
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.fastvideo_args import FastVideoArgs, attention_backend_name
from fastvideo.v1.models.dits.workload import dit_workload
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.pipelines.describe import PipelineDescription
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams

_RING_BACKENDS = ("FLASH_ATTN", "TORCH_SDPA")  # of a plugin's it is not known here


def choose_phase_layouts(
    config: RunConfig, description: PipelineDescription, sampling: SamplingParams
) -> dict[Phase, LayoutChoice]:
    """The layout of ``engine.num_gpus`` for each phase: the config's own if it sets a size, else the best for its goal.

    Denoising has layouts for the last samples, too, where ``spread_tail`` is set and the sizes are not.

    Reads the headers of the checkpoint's weight files where there is a choice. Raises ``ValueError`` when a phase does
    not fit in the GPUs' memory, or the config's sizes do not divide the transformer's heads.
    """
    engine = config.engine
    if engine.num_gpus == 1:
        return {phase: LayoutChoice(layout=ParallelLayout(), reason="engine.num_gpus=1") for phase in ALL_PHASES}
    if engine.layout.model_size > 1:
        work = denoise_workload(transformer_config(description), description.canvas, sampling)
        if work is not None:
            _check_heads(work, engine.layout)
        choice = LayoutChoice(layout=engine.layout, reason="set by engine's sizes")
        return dict.fromkeys(ALL_PHASES, choice)
    gpu = replace(Cluster().gpu, memory=config.gpu_memory * GIB)
    cluster = replace(Cluster(), gpu=gpu)
    choices = {}
    for phase in ALL_PHASES:
        sizes = {name: _weight_bytes(description.model_root, name, engine) for name in description.components[phase]}
        held = _held_at_once(sizes, engine)
        work = None
        if phase is Phase.DENOISE:
            work = denoise_workload(transformer_config(description), description.canvas, sampling, held)
            backend = attention_backend_name(engine.attention_backend)
            work = work and replace(work, joins_rings=backend in (None, *_RING_BACKENDS))
        if work is None:
            choices[phase] = choose_for_weights(held, engine.num_gpus, cluster)
        else:
            choice = choose_layout(work, engine.num_gpus, config.goal, cluster)
            if config.spread_tail:
                tails = choose_tails(work, choice.layout, sampling.num_inference_steps, cluster)
                choice = replace(choice, tails=tails)
            choices[phase] = choice
    return choices


def with_layout(engine: FastVideoArgs, layout: ParallelLayout) -> FastVideoArgs:
    """``engine`` with the sizes of ``layout``: what the jobs of its phase are started with.

    Weights are sharded only where there is somebody to share them with.
    """
    return replace(
        engine,
        shard_weights=engine.shard_weights and layout.cfg * layout.sequence > 1,
        num_gpus=layout.size,
        cfg_size=layout.cfg,
        sp_size=layout.sequence,
        ring_size=layout.ring,
        tp_size=layout.tensor,
    )


def _check_heads(work: Workload, layout: ParallelLayout) -> None:
    """Else a job finds out, once all that comes before it is made."""
    num_gpus = layout.ulysses * layout.tensor
    if work.num_heads % num_gpus == 0:
        return
    nearest = min(
        layouts_that_divide(work, layout.size),
        key=lambda other: (
            other.data != layout.data,
            other.cfg != layout.cfg,
            other.tensor != layout.tensor,
            -other.ulysses,
        ),
    )
    raise ValueError(
        f"engine's sizes ({layout.brief}) share the transformer's {work.num_heads} heads among ulysses x tensor = "
        f"{num_gpus} GPUs, which must divide them; nearest: cfg_size={nearest.cfg}, sp_size={nearest.sequence}, "
        f"ring_size={nearest.ring}, tp_size={nearest.tensor}"
    )


def _held_at_once(sizes: Mapping[str, float], engine: FastVideoArgs) -> float:
    """Bytes of weights that a GPU holds at a time, of components of these sizes, where others wait in host memory."""
    waiting = {
        name
        for name in sizes
        if engine.layer_offload and name.startswith(("transformer", "text_encoder"))  # all but a block or two
    }
    if engine.expert_offload and "transformer_2" in sizes:
        waiting = {min(("transformer", "transformer_2"), key=lambda name: sizes[name])}
    return sum(size for name, size in sizes.items() if name not in waiting)


def transformer_config(description: PipelineDescription) -> dict[str, Any]:
    """The transformer's ``config.json``; empty for a pipeline without one."""
    if "transformer" not in description.components[Phase.DENOISE]:
        return {}
    return ModelRepository(description.model_root).read_json("transformer/config.json")


def denoise_workload(
    config: Mapping[str, Any], rule: CanvasRule, sampling: SamplingParams, weight_bytes: float = 0.0
) -> Workload | None:
    """A step of the transformer of ``config`` on the canvas; None for an architecture that is not ours."""
    patch = config.get("patch_size", 1)
    side = max(1, rule.spatial // (patch if isinstance(patch, int) else patch[1]))
    frames = (sampling.num_frames - 1) // rule.temporal + 1
    size = (frames, sampling.height // side, sampling.width // side)
    return dit_workload(config, size, weight_bytes, 2 if sampling.is_guided else 1)


def _weight_bytes(root: str, component: str, engine: FastVideoArgs) -> float:
    """Bytes of a component's weights in the data type that it has on a GPU."""
    import torch

    from fastvideo.v1.models.loader.component import component_dtype
    from fastvideo.v1.models.loader.weight_files import shard_files

    repository = ModelRepository(root)
    if not any(name.endswith(".safetensors") for name in repository.files(component)):
        return 0  # a tokenizer, a scheduler
    headers = (repository.read_header(file) for file in shard_files(repository, component))
    num_values = sum(math.prod(tensor["shape"]) for header in headers for tensor in header.values())
    return num_values * component_dtype(component, engine, torch.device("cuda")).itemsize
