"""`fastvideo bench`: its commands and their options; nothing heavy is imported before one runs."""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from fastvideo.v1.output_file import check_output_file


def add_bench_commands(bench: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    """Adds a command for each bench; each sets ``run``, a function of the parsed options that returns the exit code.

    Returns them, for :func:`add_kind` to add others.
    """
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    dit = add_kind(kinds, "dit", "one forward of a transformer at full size, beside diffusers", _dit)
    dit.add_argument("--model", default="wan21_t2v_1.3B", help="an architecture of fastvideo/data/configs")
    _add_canvas(dit, rounds=7, cases=["diffusers", "diffusers+compile", "ours"])
    attention = add_kind(kinds, "attention", "self-attention kernels, dense and in sliding tiles", _attention)
    attention.add_argument("--workload", default="wan_14B", help="wan_14B, wan_14B_480p or hunyuan")
    attention.add_argument("--rounds", type=int, default=10)
    cases = ["flash", "sliding", "sliding+kernel", "flex+kernel"]
    attention.add_argument("--cases", nargs="+", default=cases)
    vae = add_kind(kinds, "vae", "a VAE's decode at full size, beside diffusers", _vae)
    vae.add_argument("--model", default="wan", help="wan or hunyuan")
    _add_canvas(vae, rounds=5, cases=["diffusers+float32", "diffusers+bfloat16", "ours+bfloat16"])
    memory = add_kind(kinds, "memory", "memory of each phase at full size, computed without a GPU", _memory)
    memory.add_argument("--systems", nargs="*", default=[], help="wan21_t2v_14B, …; all that are known by default")
    for name in ("--height", "--width", "--num-frames"):
        memory.add_argument(name, type=int, help="in place of the system's own")
    parallel = add_kind(kinds, "parallel", "layouts of several GPUs at full size, their collectives", _parallel)
    parallel.add_argument("--dry", action="store_true", help="by arithmetic alone, without a GPU")
    parallel.add_argument("--workloads", nargs="*", default=[], help="wan21_t2v_14B_720p, …; all by default")
    parallel.add_argument("--gpus", nargs="+", type=int, default=[2, 4, 8])
    parallel.add_argument("--gpu", default="h100", choices=["h100", "h200"])
    parallel.add_argument("--link", default="nvlink", choices=["nvlink", "pcie"], help="within a node")
    parallel.add_argument(
        "--compare", nargs="*", default=[], help="transformers whose layouts are held against float32"
    )
    parallel.add_argument("--decode", nargs="*", default=[], help="wan, hunyuan: their decode over all GPUs")
    parallel.add_argument("--layouts", nargs="*", default=[], help="'cfg=2 x ulysses=2' …; all by default")
    parallel.add_argument("--rounds", type=int, default=5, help="steps timed in a layout, at most")
    pipeline = add_kind(kinds, "pipeline", "a denoise shard: cold start, and how long the GPU waits", _pipeline)
    pipeline.add_argument("--model", default="wan21_t2v_1.3B", help="of fastvideo/data/configs, or a model directory")
    pipeline.add_argument("--samples", type=int, default=16)
    pipeline.add_argument("--gpus", nargs="+", type=int, default=[1], help="of jobs that have samples side by side")
    _add_job(pipeline, steps=4)
    recovery = add_kind(kinds, "recovery", "a rank is killed within a step that all GPUs share", _recovery)
    recovery.add_argument("--model", default="wan21_t2v_14B", help="of fastvideo/data/configs, or a model directory")
    recovery.add_argument("--gpus", type=int, default=2)
    _add_job(recovery, steps=20)
    encode = add_kind(kinds, "encode", "real prompts through the full-size text encoder", _encode)
    encode.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32, 64])
    encode.add_argument("--prompts", type=int, default=944)
    adherence = add_kind(kinds, "adherence", "do approximate modes still show what was asked", _adherence)
    modes = ["fp8", "fp8attn", "fp8+fp8attn", "skip=0.1", "skip=0.2", "skip=0.3", "skip=0.5", "tiles"]
    adherence.add_argument("--modes", nargs="*", default=modes, help="beside the exact one; options joined by +")
    adherence.add_argument("--videos", type=int, default=64)
    adherence.add_argument("--steps", type=int, default=20)
    adherence.add_argument("--seed", type=int, default=0, help="of the prompts")
    plan = add_kind(kinds, "plan", "planning prompts and scanning a store", _plan)
    plan.add_argument("--prompts", type=int, default=1_000_000, help="prompts to plan")
    plan.add_argument("--objects", type=int, default=200_000, help="objects to find on resume")
    overhead = add_kind(kinds, "overhead", "what is no GPU work in a run, by arithmetic on measured parts", _overhead)
    overhead.add_argument(
        "--figures", metavar="DIR", default="infra/benchmarks", help="JSON files of the other benches"
    )
    overhead.add_argument(
        "--orchestration", type=float, metavar="SECONDS", help="a shard, in place of what was measured"
    )
    return kinds


def add_kind(
    kinds: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
) -> argparse.ArgumentParser:
    """Adds one bench: its figures, which ``measure`` makes of the options, are printed, written and drawn."""
    kind = kinds.add_parser(name, help=text)
    kind.add_argument("--json", metavar="FILE", help="also write the figures here")
    kind.add_argument("--plot", metavar="PNG", help="also draw the rows here, a bar each")
    kind.set_defaults(run=partial(_run, measure))
    return kind


def _run(measure: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.report import report

    for name, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None:
            check_output_file(name, path)
    report(measure(options), options.json, options.plot)
    return 0


def _add_canvas(kind: argparse.ArgumentParser, rounds: int, cases: list[str]) -> None:
    for name, default in (("--height", 480), ("--width", 832), ("--num-frames", 81), ("--rounds", rounds)):
        kind.add_argument(name, type=int, default=default)
    kind.add_argument("--cases", nargs="+", default=cases)


def _add_job(kind: argparse.ArgumentParser, steps: int) -> None:
    kind.add_argument("--layers", type=int, help="in place of the model's own")
    kind.add_argument("--folder", help="where checkpoint and store are written for the time; else the system's own")
    for name, default in (("--height", 480), ("--width", 832), ("--num-frames", 81), ("--steps", steps)):
        kind.add_argument(name, type=int, default=default)


def _job_sampling(options: argparse.Namespace) -> dict[str, int]:
    sampling = {name: getattr(options, name) for name in ("height", "width", "num_frames")}
    return sampling | {"num_inference_steps": options.steps}


def _dit(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.dit import bench_dit

    return bench_dit(options.model, options.height, options.width, options.num_frames, options.cases, options.rounds)


def _attention(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.attention import bench_attention

    return bench_attention(options.workload, options.cases, options.rounds)


def _vae(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.vae import bench_vae

    canvas = (options.height, options.width, options.num_frames)
    return bench_vae(options.model, *canvas, options.cases, options.rounds)


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.memory import bench_memory

    canvas = {name: getattr(options, name) for name in ("height", "width", "num_frames")}
    return bench_memory(options.systems, canvas)


def _parallel(options: argparse.Namespace) -> dict[str, Any]:
    if options.dry:
        from fastvideo.v1.entrypoints.bench.parallel import bench_parallel

        return bench_parallel(options.workloads, options.gpus, options.gpu, options.link)
    from fastvideo.v1.entrypoints.bench.parallel_run import run_parallel

    asked = {name: getattr(options, name) for name in ("compare", "decode", "layouts", "rounds", "gpu", "link")}
    return run_parallel(options.workloads, options.gpus, **asked, listener=_print_event)


def _print_event(event: dict[str, Any]) -> None:
    print(json.dumps(event), file=sys.stderr, flush=True)  # a long run's figures are not lost with it


def _pipeline(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.pipeline import bench_pipeline

    sampling = _job_sampling(options)
    return bench_pipeline(options.model, options.samples, options.layers, sampling, options.folder, options.gpus)


def _recovery(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.recovery import bench_recovery

    return bench_recovery(options.model, options.layers, _job_sampling(options), options.folder, options.gpus)


def _encode(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.encode import bench_encode

    return bench_encode(options.batch_sizes, options.prompts)


def _adherence(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.adherence import bench_adherence

    return bench_adherence(options.modes, options.videos, options.steps, options.seed)


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.dataset.plan.benchmark import bench_planning

    return bench_planning(options.prompts, options.objects)


def _overhead(options: argparse.Namespace) -> dict[str, Any]:
    from fastvideo.v1.entrypoints.bench.overhead import bench_overhead

    return bench_overhead(options.figures, options.orchestration)
