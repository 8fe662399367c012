"""`fastvideo bench adherence`: do videos of the embedded model show what was asked, in approximate modes, too?

What a clip shows is told by its pixels and held against the words of its prompt; PSNR is against the exact video of the
same prompt and seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.objects.comparison import video_psnr
from fastvideo.v1.entrypoints.bench.modes import CANVAS, TILES_CANVAS, Modes, canvas_of, obstacle
from fastvideo.v1.entrypoints.bench.shape_prompts import draw_prompts
from fastvideo.v1.entrypoints.bench.shapes import Scene, see
from fastvideo.v1.entrypoints.video_generator import VideoGenerator
from fastvideo.v1.logger import init_logger

logger = init_logger(__name__)

Videos = list[np.ndarray]  # uint8 ``[t, h, w, c]`` each


def bench_adherence(modes: Sequence[str], num_videos: int, steps: int, seed: int) -> dict[str, Any]:
    """Shares of videos with the right background, colour, motion and all three, and PSNR, for each of ``modes``.

    See :class:`Modes` for their names. Each canvas has a row of the exact mode first. A mode that this machine cannot
    have is ``left_out``, with the reason. ``seed`` draws the prompts; videos have the seeds 0, 1, 2 and so on.
    """
    if num_videos < 1:
        raise ValueError(f"videos={num_videos} must be at least 1")
    asked = draw_prompts(num_videos, seed)
    left_out = {mode: reason for mode in modes if (reason := obstacle(mode))}
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        found = Modes(steps, Path(folder))
        engines = {mode: found.engine(mode) for mode in modes if mode not in left_out}
        for canvas in (CANVAS, TILES_CANVAS):
            here = {mode: engine for mode, engine in engines.items() if canvas_of(mode) == canvas}
            if here or canvas is CANVAS:
                rows += _rows({"exact": {}} | here, {**canvas, "num_inference_steps": steps}, asked)
    figures: dict[str, Any] = {"model": Path(EMBEDDED_MODEL).name, "steps": steps, "prompts_seed": seed}
    return figures | ({"left_out": left_out} if left_out else {}) | {"rows": rows}


def _rows(
    engines: dict[str, dict[str, Any]], sampling: dict[str, int], asked: Sequence[tuple[str, Scene]]
) -> Iterator[dict[str, Any]]:
    """A row for each mode, of which the first is the exact one."""
    exact: Videos = []
    for mode, engine in engines.items():
        videos = _make(engine, [prompt for prompt, _ in asked], sampling)
        exact = exact or videos
        row = {"mode": mode, "canvas": "x".join(str(sampling[name]) for name in CANVAS)}
        row |= _figures(videos, exact, [scene for _, scene in asked])
        logger.info("%s", row)  # a long run's figures are not lost with it
        yield row


def _make(engine: dict[str, Any], prompts: Sequence[str], sampling: dict[str, Any]) -> Videos:
    with VideoGenerator.from_pretrained(EMBEDDED_MODEL, **engine) as generator:
        return [
            generator.generate_video(prompt, seed=number, **sampling).frames.numpy()
            for number, prompt in enumerate(prompts)
        ]


def _figures(videos: Videos, exact: Videos, asked: Sequence[Scene]) -> dict[str, Any]:
    seen = [see(video) for video in videos]
    right = {
        name: [getattr(here, name) == getattr(there, name) for here, there in zip(seen, asked, strict=True)]
        for name in ("background", "colour", "motion")
    }
    distances = [video_psnr(theirs, ours) for theirs, ours in zip(exact, videos, strict=True)]
    decibels = [distance for distance in distances if distance is not None]  # None: equal pixels
    return {
        "videos": len(videos),
        **{name: _share(values) for name, values in right.items()},
        "all_three": _share([all(values) for values in zip(*right.values(), strict=True)]),
        "equal": len(distances) - len(decibels),
        "psnr_mean": mean(decibels) if decibels else None,
        "psnr_lowest": min(decibels, default=None),
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
