"""What a changed config changes: the phases whose keys differ from those of the newest run, why, and what it costs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.plan.planning import Plan
from fastvideo.v1.dataset.plan.quote import PhaseQuote, quote
from fastvideo.v1.dataset.progress.scan import list_objects
from fastvideo.v1.dataset.runs.keys import engine_fields, sampling_fields
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

# They are in no key, and every sample's identity depends on them.
_SAMPLE_FIELDS = ("seed", "negative_prompt", "height", "width", "num_frames")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A phase whose objects are others than the newest run's; ``num_remade`` of those there are made again.

    ``reasons`` may be empty: not all that is in a key is in a run's record (a setting of ``model_index.json``).
    """

    phase: Phase
    reasons: tuple[str, ...]
    num_remade: int
    gpu_hours: float | None

    def __str__(self) -> str:
        hours = "" if self.gpu_hours is None else f", {self.gpu_hours:.3g} GPU-hours"
        remade = f"{self.num_remade} that are there are made again{hours}" if self.num_remade else "none is there yet"
        return f"{self.phase}: {'; '.join(self.reasons) or 'the model has other settings'}: {remade}"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """``samples`` says why the newest run's samples are not this one's, where they are not."""

    newest: str
    samples: tuple[str, ...]
    phases: tuple[Change, ...]

    def lines(self) -> list[str]:
        """For a person."""
        head = f"this config differs from that of the newest run, {self.newest}"
        samples = [f"its samples are others: {'; '.join(self.samples)}"] if self.samples else []
        return [head, *(f"  {line}" for line in (*samples, *map(str, self.phases)))]


def find_changes(planned: Plan, config: RunConfig, quoted: Mapping[Phase, PhaseQuote] | None = None) -> Changes | None:
    """What differs from the output's newest run before this plan; None if that is the plan's own, or there was none."""
    run, newest = planned.run, planned.newest
    if newest is None or newest.name == run.name:
        return None
    quoted = quoted or quote(planned, config)
    differing = [phase for phase in ALL_PHASES if newest.keys[phase] != run.keys[phase]]
    is_guided = newest.sampling.is_guided or run.sampling.is_guided
    names = [name for name in _SAMPLE_FIELDS if name != "negative_prompt" or is_guided]
    return Changes(
        newest=newest.name,
        samples=tuple(_differing(asdict(newest.sampling), asdict(run.sampling), names)),
        phases=tuple(_change(planned, newest, phase, quoted[phase].seconds.value) for phase in differing),
    )


def _change(planned: Plan, newest: Run, phase: Phase, seconds: float | None) -> Change:
    num_remade = _num_remade(planned, newest, phase)
    return Change(
        phase=phase,
        reasons=tuple(_reasons(newest, planned.run, phase)),
        num_remade=num_remade,
        gpu_hours=None if seconds is None else num_remade * seconds / 3600,
    )


def _num_remade(planned: Plan, newest: Run, phase: Phase) -> int:
    """Objects that this plan misses and the newest run has, under another key."""
    there = list_objects(newest.objects, phase, newest.keys[phase])["id"].combine_chunks()
    return pc.sum(pc.is_in(planned.scan[phase].missing_ids, there)).as_py() or 0


def _reasons(before: Run, now: Run, phase: Phase) -> Iterator[str]:
    if before.pipeline_class != now.pipeline_class:
        yield f"pipeline {before.pipeline_class} -> {now.pipeline_class}"
    for name in describe_pipeline(now.model_path).components[phase]:
        if before.fingerprints.get(name) != now.fingerprints[name]:
            yield f"{name} has other weights or another config"
    yield from _differing(before.engine, now.engine, engine_fields(phase))
    yield from _differing(asdict(before.sampling), asdict(now.sampling), sampling_fields(phase))
    if phase is Phase.DECODE:
        yield from _differing(asdict(before.video), asdict(now.video), asdict(now.video))
    for stage, version in now.stage_versions[phase].items():
        if before.stage_versions[phase].get(stage) != version:
            yield f"{stage} has another version"
    position = ALL_PHASES.index(phase)
    if position and before.keys[ALL_PHASES[position - 1]] != now.keys[ALL_PHASES[position - 1]]:
        yield f"it is made from what {ALL_PHASES[position - 1]} makes"


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if before.get(name) != now.get(name):
            yield f"{name} {before.get(name)} -> {now.get(name)}"
