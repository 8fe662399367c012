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
from fastvideo.v1.entrypoints.bench.commands import add_bench_commands
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.output_file import check_output_file
from fastvideo.v1.sampling_params import SamplingOverrides


def add_commands(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    """Adds this module's commands; each sets ``run``, a function of the parsed arguments that returns the exit code.

    Returns those of ``bench``, for the one that needs Prefect.
    """
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
    return add_bench_commands(subparsers.add_parser("bench", help="measure this machine"))


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

    check_output_file("--output", options.output)
    sampling = {name: value for name, value in _sampling(options).items() if value is not None}
    windows = search_tiles(options.model, options.prompt, options.candidates, options.dense_steps, **sampling)
    Path(options.output).write_text(json.dumps(windows))
    print(f"{options.output}: {len(windows)} windows")
    return 0


def _fit_step_skipping(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.skip_fit import fit_step_skipping

    check_output_file("--output", options.output)
    sampling = {name: value for name, value in _sampling(options).items() if value is not None}
    rule = fit_step_skipping(options.model, options.prompt, options.first_steps, options.last_steps, **sampling)
    Path(options.output).write_text(json.dumps(asdict(rule)))
    print(f"{options.output}: {', '.join(f'{value:.6g}' for value in rule.coefficients)}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from fastvideo.v1.entrypoints.video_generator import VideoGenerator

    check_output_file("--output", options.output, ".mp4")
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
