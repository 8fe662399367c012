"""From prompts to a run: which samples there are, which are new, what is missing."""

import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from fastvideo.v1.dataset.canonical import digest
from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.keeping.collect import register_output
from fastvideo.v1.dataset.layout import rejected_path, requests_dir, run_path
from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.plan.figures import benchmark_seconds
from fastvideo.v1.dataset.plan.sample_log import SampleLog
from fastvideo.v1.dataset.progress.scan import Scan, scan
from fastvideo.v1.dataset.runs.phase_layouts import choose_phase_layouts
from fastvideo.v1.dataset.runs.resolve import resolve_run
from fastvideo.v1.dataset.runs.row_images import RowImages, announced
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.dataset.runs.sample import OVERRIDE_FIELDS, derive_seed, image_input_id, input_id, sample_id
from fastvideo.v1.dataset.runs.samples import REQUESTS_SCHEMA, read_requests, to_parquet
from fastvideo.v1.dataset.sources.prompt_row import PromptRow, RejectedRow
from fastvideo.v1.dataset.sources.prompts import read_prompts
from fastvideo.v1.dataset.waves.shards import Piece, cut_denoise, shard_size
from fastvideo.v1.distributed.choice import LayoutChoice
from fastvideo.v1.logger import init_logger
from fastvideo.v1.pipelines.describe import PipelineDescription
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import UNUSED_NEGATIVE, CanvasRule
from fastvideo.v1.shown_text import without_secrets

logger = init_logger(__name__)

_KEPT_REJECTIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``num_samples`` counts the whole run, ``num_new`` what this plan added, ``num_repeated`` equal rows merged.

    ``rejected`` holds the first bad rows of ``num_rejected``; the run's folder has up to ten thousand.
    ``layouts`` are what the phases' jobs work in, ``spread`` the denoise shards that have another. ``sizes`` counts the
    rows by what they ask for themselves, of the sampling parameters that cost time. ``newest`` is the output's newest
    run before this plan.
    """

    run: Run
    scan: Scan
    num_samples: int
    num_new: int
    num_repeated: int
    num_rejected: int
    rejected: tuple[RejectedRow, ...]
    layouts: Mapping[Phase, LayoutChoice]
    sizes: Mapping[tuple[tuple[str, Any], ...], int]
    newest: Run | None
    spread: tuple[Piece, ...]

    def told_layouts(self) -> dict[str, str]:
        """A line a phase: the layout, and why."""
        told = {str(phase): f"{choice.layout.brief}: {choice.reason}" for phase, choice in self.layouts.items()}
        for piece in self.spread:
            told[str(Phase.DENOISE)] += f"; {piece.num_samples} samples on {piece.layout.brief}: {piece.reason}"
        return told


def plan_run(config: RunConfig, *, write: bool = True) -> Plan:
    """Resolves the run of ``config``, adds the prompts' new samples to it and scans its stores.

    Streams the prompts. Without ``write`` nothing changes anywhere. Raises ``ValueError`` for a bad model, size or
    file, and when no row can be used.
    """
    output = Store(config.output)
    run, description = resolve_run(config, output)
    layouts = choose_phase_layouts(config, description, run.sampling)
    if write:
        for store in (run.output, run.objects):
            store.check_exclusive_create()
        if run.store_uri:
            register_output(run.objects, run.output)
    newest = max(list_runs(output), key=lambda run: run.created, default=None)
    found, index = _add_samples(config, run, description, write)
    if write and not output.create(run_path(run.name), run.to_json()):
        logger.info("run %s goes on: %d samples, %d new", run.name, found["num_samples"], found["num_new"])
    seen, denoise = scan(run, index), layouts[Phase.DENOISE]
    missing = seen[Phase.DENOISE].missing
    expected = benchmark_seconds(description, run.sampling, layouts, config.engine.vae_precision).get(Phase.DENOISE)
    size = shard_size(seen, config, Phase.DENOISE, denoise.layout, missing, expected)
    pieces = cut_denoise(missing, size, denoise)
    spread = tuple(piece for piece in pieces if piece.reason is not None)
    return Plan(run=run, scan=seen, layouts=layouts, spread=spread, newest=newest, **found)


def _add_samples(
    config: RunConfig, run: Run, description: PipelineDescription, write: bool
) -> tuple[dict[str, Any], pa.Table]:
    """What the plan tells of the prompts, and the ids of all samples.

    On return the counts of a million ids are freed, before the scan takes memory of its own.
    """
    log = SampleLog(run, write=write)
    planner = _Planner(run, description.canvas, log)
    rows = itertools.islice(read_prompts(config.prompts), config.limit)
    with announced(run) if write and description.image_use != "refused" else nullcontext():
        for row, image in RowImages(run, description.image_use, config.prompts, write=write).look_up(rows):
            planner.take(row, image)
        log.flush()
    planner.check_any(config.prompts)
    if write:
        planner.write_records(config.prompts)
    found = {
        "num_samples": log.num_samples,
        "num_new": log.num_new,
        "num_repeated": sum(count - 1 for count in log.requests.values() if count),
        "num_rejected": planner.num_rejected,
        "rejected": tuple(planner.rejections[:20]),
        "sizes": planner.sizes,
    }
    return found, log.index()


class _Planner:
    """Turns rows into samples, and counts."""

    def __init__(self, run: Run, canvas: CanvasRule, log: SampleLog) -> None:
        self._run, self._log = run, log
        self._canvas_error = lru_cache(4096)(lambda *size: _canvas_error(canvas, *size))
        self._input_id = lru_cache(4096)(lambda text: input_id({"prompt": text}))
        self.num_rejected = 0
        self.rejections: list[RejectedRow] = []
        self.sizes: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._num_unused_negatives = 0

    def take(self, row: PromptRow | RejectedRow, image: str | None) -> None:
        """Adds the row's samples that are new, of ``image`` if it has one, or notes why it cannot be used."""
        if isinstance(row, RejectedRow):
            return self._reject(row)
        sampling = self._run.sampling
        overrides = {
            name: value
            for name, value in row.overrides.items()
            if value != getattr(sampling, name) or sampling.is_for_both_experts({name: value})
        }
        if overrides and (error := self._canvas_error(*self._canvas(overrides))):
            return self._reject(RejectedRow(row.source, row.prompt[:200], error))
        repeats = row.repeats or self._run.repeats
        for repeat in range(repeats):
            self._add(row, image, overrides, repeat)
        self._num_unused_negatives += bool(self._negative(row)) and not self._is_guided(overrides)
        self.sizes[self._size(overrides)] += repeats

    def _add(self, row: PromptRow, image: str | None, overrides: Mapping[str, Any], repeat: int) -> None:
        sampling, is_guided = self._run.sampling, self._is_guided(overrides)
        negative = self._negative(row) if is_guided else ""
        if row.seed is not None and repeat == 0:
            seed = row.seed
        else:
            seed = derive_seed(row.prompt, sampling.seed if row.seed is None else row.seed, repeat)
        implied = {"guidance_scale_2": None} if sampling.is_for_both_experts(overrides) else {}
        id = sample_id(row.prompt, negative, seed, {**overrides, **implied}, image)
        if not self._log.request(id):
            return
        self._log.append(
            id=id,
            input_id=self._input_id(row.prompt),
            negative_input_id=self._input_id(negative) if is_guided else None,
            image_input_id=None if image is None else image_input_id(image, *self._canvas(overrides)),
            prompt=row.prompt,
            negative_prompt=negative,
            seed=seed,
            image=image,
            image_source=without_secrets(row.image) if isinstance(row.image, str) else None,
            **{name: overrides.get(name) for name in OVERRIDE_FIELDS},
        )

    def _size(self, overrides: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """What of ``overrides`` costs time: of guidance, only whether there is any."""
        if not overrides:
            return ()
        size = {name: value for name, value in overrides.items() if name != "guidance_scale"}
        is_guided = self._is_guided(overrides)
        if is_guided != self._run.sampling.is_guided:
            size["guidance_scale"] = 2.0 if is_guided else 1.0
        return tuple(sorted(size.items()))

    def _negative(self, row: PromptRow) -> str:
        return self._run.sampling.negative_prompt if row.negative_prompt is None else row.negative_prompt

    def _is_guided(self, overrides: Mapping[str, Any]) -> bool:
        sampling = self._run.sampling
        return sampling.guides_at(overrides.get("guidance_scale", sampling.guidance_scale))

    def _canvas(self, overrides: Mapping[str, Any]) -> tuple[int, int, int]:
        sampling = self._run.sampling
        height, width, num_frames = (overrides.get(name, getattr(sampling, name)) for name in IMAGE_INPUT[1:])
        return height, width, num_frames

    def _reject(self, row: RejectedRow) -> None:
        self.num_rejected += 1
        if len(self.rejections) < _KEPT_REJECTIONS:
            self.rejections.append(row)
        if self.num_rejected <= 5:
            logger.warning("%s: %s; the row is kept out", row.source, row.reason)

    def check_any(self, prompts: str) -> None:
        """Raises unless some row could be used, and tells of what was left out of rows."""
        if not any(self._log.requests.values()):
            first = f"; the first: {self.rejections[0].source}: {self.rejections[0].reason}" if self.rejections else ""
            raise ValueError(f"prompts {prompts!r} hold no row that can be used{first}")
        if self.num_rejected:
            logger.warning("%d rows are kept out", self.num_rejected)
        if self._num_unused_negatives:
            logger.warning("the negative prompt of %d rows is %s", self._num_unused_negatives, UNUSED_NEGATIVE)

    def write_records(self, prompts: str) -> None:
        """Writes the rejected rows and the counts that differ from the last plan's."""
        run = self._run
        path = rejected_path(run.name, digest(prompts, 12))
        if self.rejections:
            lines = ({"source": row.source, "value": row.value, "reason": row.reason} for row in self.rejections)
            run.output.overwrite(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        else:
            run.output.delete(path)
        before = read_requests(run.output, run.name)
        requests = self._log.requests
        now = {id.hex(): count for id, count in requests.items() if count > 1}
        once = (id for id in before if id not in now and requests.get(bytes.fromhex(id)))
        changed = {id: count for id, count in now.items() if before.get(id, 1) != count}
        changed |= {id: 1 for id in itertools.filterfalse(lambda id: before[id] == 1, once)}
        if changed:
            table = pa.table([list(changed), list(changed.values())], schema=REQUESTS_SCHEMA)
            run.output.create(f"{requests_dir(run.name)}/{_last_name(run)}", to_parquet(table))


def _last_name(run: Run) -> str:
    """A name after all that are there, whatever the clocks of the hosts that gave them."""
    names = (info.path.rpartition("/")[2] for info in run.output.list(requests_dir(run.name)))
    number = max([time.time_ns(), *(int(name.partition("-")[0]) + 1 for name in names)])
    return f"{number:020d}-{uuid.uuid4().hex[:8]}.parquet"


def _canvas_error(canvas: CanvasRule, height: int, width: int, num_frames: int) -> str | None:
    try:
        canvas.check(height, width, num_frames)
    except ValueError as error:
        return str(error)
    return None
