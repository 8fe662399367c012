"""Layouts timed at full size, as torchrun starts it: ``python -m fastvideo.v1.entrypoints.bench.parallel_job``.

Every rank builds each layout in turn, on the same random weights and inputs: bfloat16, on a CPU float32. The first rank
prints a JSON event for each thing that was measured: ``step``, ``error``, ``decode``.
"""

import argparse
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.distributed.choice import layouts_that_divide
from fastvideo.v1.distributed.cluster import Cluster
from fastvideo.v1.distributed.communication import all_gather
from fastvideo.v1.distributed.cost import Workload, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, get_cfg_group, init_world
from fastvideo.v1.entrypoints.bench.architectures import Architecture, Tensors, architecture_of, load_architecture
from fastvideo.v1.entrypoints.bench.collective_meter import CollectiveMeter, nccl_seconds
from fastvideo.v1.entrypoints.bench.dit import ERROR_LAYERS, relative_rms
from fastvideo.v1.entrypoints.bench.memory import Canvas
from fastvideo.v1.entrypoints.bench.parallel import WORKLOADS
from fastvideo.v1.entrypoints.bench.timing import interleave
from fastvideo.v1.entrypoints.bench.vae import random_decoder
from fastvideo.v1.models.dits.kept_states import KeptStates
from fastvideo.v1.models.dits.workload import dit_workload
from fastvideo.v1.worker.gpu_worker import take_device
from fastvideo.v1.worker.process import die_with_parent
from fastvideo.v1.worker.stage_job import emit

_SEED = 1
_SHORT_FRAMES = 17  # of the videos that warm up, and whose forwards are held against float32
_TIMED_SECONDS = 5.0  # of steps in a layout, once there has been one


@dataclass(frozen=True)
class _Case:
    """A workload and what its steps are timed on."""

    name: str
    architecture: Architecture
    canvas: Canvas
    work: Workload
    inputs: Tensors
    weights: Tensors


class ParallelBench:
    """This rank's part; ``options`` are :func:`main`'s."""

    def __init__(self, device: torch.device, options: argparse.Namespace) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # which a CPU is not slow at
        self.world_size = dist.get_world_size()
        self.leads = dist.get_rank() == 0
        self._config, self._most_rounds = options.config, options.rounds
        self._canvas = Canvas(*options.canvas) if options.canvas else None
        self._layouts: list[str] = options.layouts

    def measure(self, name: str) -> None:
        """One GPU alone, all of them side by side, and every way to share a sample of workload ``name``."""
        system, canvas, branches = WORKLOADS[name]
        architecture, canvas = self._architecture(system), self._canvas or canvas
        torch.manual_seed(_SEED)
        inputs = self._inputs(architecture, canvas)
        work, weights = _workload(architecture, inputs, branches), architecture.random_weights(self.device)
        case = _Case(name, architecture, canvas, work, inputs, weights)
        if self.leads:
            self._time(case, ParallelLayout(), gpus=1)
        dist.barrier()
        for layout in [ParallelLayout(data=self.world_size), *self._shared(work)]:
            self._time(case, layout, gpus=self.world_size)

    def compare(self, system: str) -> None:
        """Every layout's forward against float32 on one GPU, of the first blocks at full width."""
        architecture = self._architecture(system).shortened(ERROR_LAYERS)
        torch.manual_seed(_SEED)
        inputs = self._inputs(architecture, _short(self._canvas or Canvas(480, 832, _SHORT_FRAMES)))
        weights = architecture.random_weights(self.device)
        exact = architecture.our_model(weights, self.device, torch.float32)
        rounded = {name: tensor.bfloat16().float() for name, tensor in inputs.items() if tensor.is_floating_point()}
        with torch.inference_mode():
            reference = architecture.ours(exact, {**inputs, **rounded}, torch.float32)
        del exact
        work, alone = _workload(architecture, inputs, 1), 0.0
        for layout in [ParallelLayout(), *self._shared(work)]:
            with self._world(layout), torch.inference_mode():
                model = self._model(architecture, weights)
                error = relative_rms(architecture.ours(model, inputs, self.dtype), reference)
            alone = alone or error
            self._emit("error", model=system, layout=layout.brief, error=error, of_one_gpu=error / alone)

    def decode(self, name: str, canvas: Canvas) -> None:
        """A VAE's decode of one video on one GPU, and in bands of rows over all of them."""
        canvas = self._canvas or canvas
        torch.manual_seed(_SEED)
        decode = random_decoder(name, canvas.height, canvas.width, canvas.num_frames, self.device)
        with torch.inference_mode():
            decode()
            whole, alone = decode(), interleave({"": decode}, 2, self.device)[""].median
            with self._world(ParallelLayout(ulysses=self.world_size)):
                decode()
                banded, shared = decode(), interleave({"": decode}, 2, self.device)[""].median
        seconds = {"seconds_alone": alone, "seconds": shared, "speedup": alone / shared}
        size = [canvas.num_frames, canvas.height, canvas.width]
        self._emit("decode", vae=name, canvas=size, **seconds, error=relative_rms(banded, whole.float()))

    def _architecture(self, system: str) -> Architecture:
        return load_architecture(system) if self._config is None else architecture_of(self._config)

    def _inputs(self, architecture: Architecture, canvas: Canvas) -> Tensors:
        return architecture.random_inputs(canvas.height, canvas.width, canvas.num_frames, self.device)

    def _shared(self, work: Workload) -> list[ParallelLayout]:
        shared = [layout for layout in layouts_that_divide(work, self.world_size) if layout.data == 1]
        return [layout for layout in shared if not self._layouts or layout.brief in self._layouts]

    def _model(self, architecture: Architecture, weights: Tensors) -> Any:
        model = architecture.our_model(weights, self.device, self.dtype)
        select_attention_backends(model, self.device, self.dtype, None)
        return model

    @contextmanager
    def _world(self, layout: ParallelLayout) -> Iterator[None]:
        """The groups of ``layout``, and the memory of what was built before."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if layout.size > 1:
            init_world(layout, self.device.type, timedelta(minutes=10))
        try:
            yield
        finally:
            close_world()

    def _time(self, case: _Case, layout: ParallelLayout, gpus: int) -> None:
        """A denoising step, once it is warm: this rank's branches of guidance, and the predictions of all."""
        with self._world(layout), torch.inference_mode():
            on_gpu = self.device.type == "cuda"
            held = torch.cuda.memory_allocated() if on_gpu else 0  # the weights of which each layout takes a copy
            model = self._model(case.architecture, case.weights)
            self._step(case, model, self._inputs(case.architecture, _short(case.canvas)))()
            step, exchange = self._step(case, model, case.inputs), None
            step()  # what is kept of texts for all steps is there from the second on
            with CollectiveMeter() as meter:
                if on_gpu:
                    exchange = nccl_seconds(step)
                else:
                    step()
            timing = interleave({"": step}, self._rounds(case.work, layout), self.device)[""]
        self._emit(
            "step",
            workload=case.name,
            gpus=gpus,
            layout=astuple(layout),
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            exchange=exchange,
            collectives=sum(meter.count.values()),
            bytes=sum(meter.bytes.values()),
            peak=torch.cuda.max_memory_allocated() - held if on_gpu else None,
        )

    def _step(self, case: _Case, model: Any, inputs: Tensors) -> Callable[[], object]:
        """A step on ``inputs``, whose branches share what those of a sample do."""
        group, names = get_cfg_group(), ("latents", "text")  # by their identity it is known what can be shared
        inputs = {name: x.to(self.dtype) if name in names else x for name, x in inputs.items()}
        texts = [inputs["text"].clone() for _ in range(case.work.num_branches)]
        kept = KeptStates(texts, len(texts))

        def step() -> object:
            model.kept_states = kept
            kept.begin_step(model, inputs["latents"], inputs["timestep"])
            own = [{**inputs, "text": text} for text in texts[group.rank :: group.size]]
            flows = [case.architecture.ours(model, branch, self.dtype).float() for branch in own]
            return all_gather(torch.stack(flows), dim=0, group=group)

        return step

    def _rounds(self, work: Workload, layout: ParallelLayout) -> int:
        """As many as take some seconds by the model, so that all ranks do as many."""
        return max(1, min(self._most_rounds, int(_TIMED_SECONDS / step_cost(work, layout, Cluster()).seconds)))

    def _emit(self, event: str, **values: Any) -> None:
        if self.leads:
            emit(event, **values)


def _short(canvas: Canvas) -> Canvas:
    return Canvas(canvas.height, canvas.width, min(canvas.num_frames, _SHORT_FRAMES))


def _workload(architecture: Architecture, inputs: Tensors, branches: int) -> Workload:
    t, h, w = inputs["latents"].shape[2:]
    work = dit_workload(architecture.config, (t, h, w), weight_bytes=0, num_branches=branches)
    assert work is not None, f"no arithmetic for {architecture.config['_class_name']}"
    return work


@record
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses what :mod:`fastvideo.v1.entrypoints.bench.parallel_run` writes, and measures."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="parallel_job", description=__doc__)
    parser.add_argument("--workloads", nargs="*", default=[])
    parser.add_argument("--compare", nargs="*", default=[])
    parser.add_argument("--decode", nargs="*", default=[])
    parser.add_argument("--layouts", nargs="*", default=[], help="by their factors: 'cfg=2 x ulysses=2'; else all")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--config", type=Path, help="a transformer's config.json in place of all systems' own")
    parser.add_argument("--canvas", nargs=3, type=int)
    options = parser.parse_args(arguments)
    device = take_device("auto")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    bench = ParallelBench(device, options)
    for name in options.workloads:
        bench.measure(name)
    for system in options.compare:
        bench.compare(system)
    for vae in options.decode:
        bench.decode(vae, Canvas(480, 832, 81))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
