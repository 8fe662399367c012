"""The commands that need no orchestration: ``generate`` and ``bench``; nothing heavy is imported before one runs."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.sampling_params import SamplingOverrides


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this module's commands; each sets ``run``, a function of the parsed arguments that returns the exit code."""
    generate = subparsers.add_parser("generate", help="make one video")
    generate.add_argument("--prompt", required=True, help="what the video shows")
    generate.add_argument("--image", metavar="FILE", help="path or URI of the image that the video starts from")
    generate.add_argument("--model", default=EMBEDDED_MODEL, help="model directory, URI or cached hub id")
    generate.add_argument("--output", default="video.mp4", help="the mp4 to write")
    for field in _size_fields():
        generate.add_argument(f"--{field.name.replace('_', '-')}", type=int, help=field.metadata["description"])
    generate.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_sampling(generate)
    generate.set_defaults(run=_generate)
    search = subparsers.add_parser("search-tiles", help="find windows for sliding tile attention")
    search.add_argument("--model", required=True, help="model directory, URI or cached hub id")
    search.add_argument("--prompt", required=True, action="append", help="a prompt to compare on; may be repeated")
    search.add_argument("--output", required=True, help="the JSON file of windows to write")
    search.add_argument("--candidates", required=True, nargs="+", type=_window, help="windows in tiles: 3,1,10 1,5,7 …")
    search.add_argument("--dense-steps", type=int, default=12, help="first steps that stay dense")
    _add_sampling(search)
    search.set_defaults(run=_search_tiles)
    fit = subparsers.add_parser("fit-step-skipping", help="find coefficients for step skipping")
    fit.add_argument("--model", required=True, help="model directory, URI or cached hub id")
    fit.add_argument("--prompt", required=True, action="append", help="a prompt to measure on; may be repeated")
    fit.add_argument("--output", required=True, help="the JSON file to write, for step_skip_rule")
    fit.add_argument("--first-steps", type=int, default=1, help="first steps that the rule never skips")
    fit.add_argument("--last-steps", type=int, default=1, help="last steps that the rule never skips")
    _add_sampling(fit)
    fit.set_defaults(run=_fit_step_skipping)
    _add_bench(subparsers.add_parser("bench", help="measure this machine"))


_OPTION_TYPES = {"guidance_scale": float, "guidance_scale_2": float, "flow_shift": float, "negative_prompt": str}


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    for field in fields(SamplingOverrides):
        kind = _OPTION_TYPES.get(field.name, int)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=field.metadata["description"])


def _size_fields() -> list[Field[Any]]:
    """How many GPUs a video is split among, and how."""
    return [field for field in fields(FastVideoArgs) if field.name == "num_gpus" or field.name.endswith("_size")]


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(SamplingOverrides)}


def _window(text: str) -> tuple[int, int, int]:
    t, h, w = (int(size) for size in text.split(","))
    return t, h, w


def _search_tiles(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.tile_search import search_tiles

    sampling = {name: value for name, value in _sampling(options).items() if value is not None}
    windows = search_tiles(options.model, options.prompt, options.candidates, options.dense_steps, **sampling)
    Path(options.output).write_text(json.dumps(windows))
    print(f"{options.output}: {len(windows)} windows")
    return 0


def _fit_step_skipping(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.skip_fit import fit_step_skipping

    sampling = {name: value for name, value in _sampling(options).items() if value is not None}
    rule = fit_step_skipping(options.model, options.prompt, options.first_steps, options.last_steps, **sampling)
    Path(options.output).write_text(json.dumps(asdict(rule)))
    print(f"{options.output}: {', '.join(f'{value:.6g}' for value in rule.coefficients)}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.video_generator import VideoGenerator

    sampling = _sampling(options)
    given = {field.name: getattr(options, field.name) for field in _size_fields()}
    sizes = {name: size for name, size in given.items() if size is not None}
    with VideoGenerator.from_pretrained(options.model, **sizes) as generator, _step_bar() as on_step:
        result = generator.generate_video(
            options.prompt, options.output, image_path=options.image, on_step=on_step, **sampling
        )
    if options.json:
        print(json.dumps({"path": result.path, "shape": list(result.frames.shape), "timings": result.timings}))
    else:
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result.timings.items() if value >= 0.01)
        print(f"{result.path}: {len(result.frames)} frames ({seconds})")
    return 0


@contextmanager
def _step_bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar of denoising steps on a terminal; elsewhere nothing, since one video takes one line."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("denoising", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    dit = _add_kind(kinds, "dit", "one forward of a transformer at full size, beside diffusers", _bench_dit)
    dit.add_argument("--model", default="wan21_t2v_1.3B", help="an architecture of fastvideo/data/configs")
    _add_canvas(dit, rounds=7, cases=["diffusers", "diffusers+compile", "ours"])
    attention = _add_kind(kinds, "attention", "self-attention kernels, dense and in sliding tiles", _bench_attention)
    attention.add_argument("--workload", default="wan_14B", help="wan_14B, wan_14B_480p or hunyuan")
    attention.add_argument("--rounds", type=int, default=10)
    cases = ["flash", "sliding", "sliding+kernel", "flex+kernel"]
    attention.add_argument("--cases", nargs="+", default=cases)
    vae = _add_kind(kinds, "vae", "a VAE's decode at full size, beside diffusers", _bench_vae)
    vae.add_argument("--model", default="wan", help="wan or hunyuan")
    _add_canvas(vae, rounds=5, cases=["diffusers+float32", "diffusers+bfloat16", "ours+bfloat16"])
    memory = _add_kind(kinds, "memory", "memory of each phase at full size, computed without a GPU", _bench_memory)
    memory.add_argument("--systems", nargs="*", default=[], help="wan21_t2v_14B, …; all that are known by default")
    for name in ("--height", "--width", "--num-frames"):
        memory.add_argument(name, type=int, help="in place of the system's own")
    parallel = _add_kind(kinds, "parallel", "layouts of several GPUs at full size, their collectives", _bench_parallel)
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
    pipeline = _add_kind(kinds, "pipeline", "a denoise shard: cold start, and how long the GPU waits", _bench_pipeline)
    pipeline.add_argument("--model", default="wan21_t2v_1.3B", help="of fastvideo/data/configs, or a model directory")
    pipeline.add_argument("--samples", type=int, default=16)
    pipeline.add_argument("--gpus", nargs="+", type=int, default=[1], help="of jobs that have samples side by side")
    _add_job(pipeline, steps=4)
    recovery = _add_kind(kinds, "recovery", "a rank is killed within a step that all GPUs share", _bench_recovery)
    recovery.add_argument("--model", default="wan21_t2v_14B", help="of fastvideo/data/configs, or a model directory")
    recovery.add_argument("--gpus", type=int, default=2)
    _add_job(recovery, steps=20)
    encode = _add_kind(kinds, "encode", "real prompts through the full-size text encoder", _bench_encode)
    encode.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32, 64])
    encode.add_argument("--prompts", type=int, default=944)
    plan = _add_kind(kinds, "plan", "planning prompts and scanning a store", _bench_plan)
    plan.add_argument("--prompts", type=int, default=1_000_000, help="prompts to plan")
    plan.add_argument("--objects", type=int, default=200_000, help="objects to find on resume")


def _add_kind(
    kinds: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    kind = kinds.add_parser(name, help=text)
    kind.add_argument("--json", metavar="FILE", help="also write the figures here")
    kind.add_argument("--plot", metavar="PNG", help="also draw the rows here, a bar each")
    kind.set_defaults(run=run)
    return kind


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


def _bench_dit(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.dit import bench_dit
    from fastvideo.v1.entrypoints.bench.report import report

    figures = bench_dit(options.model, options.height, options.width, options.num_frames, options.cases, options.rounds)
    report(figures, options.json, options.plot)
    return 0


def _bench_attention(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.attention import bench_attention
    from fastvideo.v1.entrypoints.bench.report import report

    report(bench_attention(options.workload, options.cases, options.rounds), options.json, options.plot)
    return 0


def _bench_vae(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.report import report
    from fastvideo.v1.entrypoints.bench.vae import bench_vae

    canvas = (options.height, options.width, options.num_frames)
    report(bench_vae(options.model, *canvas, options.cases, options.rounds), options.json, options.plot)
    return 0


def _bench_memory(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.memory import bench_memory
    from fastvideo.v1.entrypoints.bench.report import report

    canvas = {name: getattr(options, name) for name in ("height", "width", "num_frames")}
    report(bench_memory(options.systems, canvas), options.json, options.plot)
    return 0


def _bench_parallel(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.report import report

    if options.dry:
        from fastvideo.v1.entrypoints.bench.parallel import bench_parallel

        figures = bench_parallel(options.workloads, options.gpus, options.gpu, options.link)
    else:
        from fastvideo.v1.entrypoints.bench.parallel_run import run_parallel

        asked = {name: getattr(options, name) for name in ("compare", "decode", "layouts", "rounds", "gpu", "link")}
        figures = run_parallel(options.workloads, options.gpus, **asked, listener=_print_event)
    report(figures, options.json, options.plot)
    return 0


def _print_event(event: dict[str, Any]) -> None:
    print(json.dumps(event), file=sys.stderr, flush=True)  # a long run's figures are not lost with it


def _bench_pipeline(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.pipeline import bench_pipeline
    from fastvideo.v1.entrypoints.bench.report import report

    sampling = _job_sampling(options)
    figures = bench_pipeline(options.model, options.samples, options.layers, sampling, options.folder, options.gpus)
    report(figures, options.json, options.plot)
    return 0


def _bench_recovery(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.recovery import bench_recovery
    from fastvideo.v1.entrypoints.bench.report import report

    figures = bench_recovery(options.model, options.layers, _job_sampling(options), options.folder, options.gpus)
    report(figures, options.json, options.plot)
    return 0


def _bench_encode(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.bench.encode import bench_encode
    from fastvideo.v1.entrypoints.bench.report import report

    report(bench_encode(options.batch_sizes, options.prompts), options.json, options.plot)
    return 0


def _bench_plan(options: argparse.Namespace) -> int:
    from fastvideo.v1.dataset.benchmark import bench_planning
    from fastvideo.v1.entrypoints.bench.report import report

    report(bench_planning(options.prompts, options.objects), options.json, options.plot)
    return 0
