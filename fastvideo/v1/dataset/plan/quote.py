"""What it takes to make what a plan misses: GPU-hours and bytes by phase, each figure with its source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.plan.figures import CRF_HALVES, Estimate, ModelFigures, pixels
from fastvideo.v1.dataset.plan.planning import Plan
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.runs.keys import engine_fields
from fastvideo.v1.dataset.runs.run import Run, list_runs
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import SamplingParams

Work = Callable[[SamplingParams], float]
"""What a sample's cost is proportional to."""


@dataclass(frozen=True, kw_only=True)
class PhaseQuote:
    """``seconds`` of an object are GPU-seconds: those of every GPU that shares it."""

    missing: int
    seconds: Estimate
    bytes: Estimate

    @property
    def gpu_hours(self) -> float | None:
        """Of all that is missing."""
        return None if self.seconds.value is None else self.missing * self.seconds.value / 3600

    @property
    def total_bytes(self) -> float | None:
        """To be written."""
        return None if self.bytes.value is None else self.missing * self.bytes.value

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "missing": self.missing,
            "gpu_hours": self.gpu_hours,
            "gpu_seconds_each": self.seconds.value,
            "seconds_source": self.seconds.source,
            "bytes": self.total_bytes,
            "bytes_each": self.bytes.value,
            "bytes_source": self.bytes.source,
        }


def quote(planned: Plan, config: RunConfig) -> dict[Phase, PhaseQuote]:
    """The phases of a plan, by its run's own ledger, else by another run's of the same output, else by benchmarks."""
    estimator = _Estimator(planned, config)
    return {
        phase: PhaseQuote(
            missing=planned.scan[phase].missing, seconds=estimator.seconds(phase), bytes=estimator.bytes(phase)
        )
        for phase in ALL_PHASES
    }


@dataclass(frozen=True)
class _Measured:
    """What the ledger of a run tells of a phase: means of an object."""

    run: Run
    is_own: bool
    count: int
    seconds: float
    bytes: float
    device: str

    def source(self, scale: float) -> str:
        """Where a figure is from that was scaled by ``scale``."""
        ledger = "this run's ledger" if self.is_own else f"the ledger of run {self.run.name}"
        scaled = f", x{scale:.3g} for what differs" if abs(scale - 1) > 1e-6 else ""
        return f"{ledger}: mean of {self.count} on {self.device}{scaled}"


class _Estimator:
    def __init__(self, planned: Plan, config: RunConfig) -> None:
        self._planned, self._config, self._run = planned, config, planned.run
        self._description = describe_pipeline(config.engine.model_path)
        self._figures = ModelFigures(self._description, self._mean)
        self._measured = {phase: self._measure(phase) for phase in ALL_PHASES}

    def seconds(self, phase: Phase) -> Estimate:
        """GPU-seconds of an object."""
        layout = self._planned.layouts[phase].layout
        measured = self._measured[phase]
        if measured is None:
            return self._figures.seconds(phase, layout, self._config.engine.vae_precision)
        scale = self._scale(self._work(phase), measured)
        shared = f", {layout.model_size} GPUs each" if layout.model_size > 1 else ""
        return Estimate(value=measured.seconds * scale * layout.model_size, source=measured.source(scale) + shared)

    def bytes(self, phase: Phase) -> Estimate:
        """Size of an object."""
        crf = self._run.video.crf
        measured = self._measured[phase]
        if measured is None:
            return self._figures.bytes(phase, crf)
        scale = 1.0 if phase is Phase.ENCODE else self._scale(pixels, measured)
        if phase is Phase.DECODE:
            scale *= 2 ** ((measured.run.video.crf - crf) / CRF_HALVES)
        return Estimate(value=measured.bytes * scale, source=measured.source(scale))

    def _measure(self, phase: Phase) -> _Measured | None:
        others = [run for run in reversed(list_runs(self._run.output)) if run.name != self._run.name]
        for run in (self._run, *(run for run in others if self._is_like(run, phase))):
            table = read_ledger(run, phase, ["seconds", "bytes", "device"])
            table = table.filter(table["seconds"].is_valid())
            if len(table):
                seconds, size = (pc.mean(table[name]).as_py() for name in ("seconds", "bytes"))
                devices = table["device"].value_counts().to_pylist()
                device = max(devices, key=lambda device: device["counts"])["values"]
                return _Measured(run, run is self._run, len(table), seconds, size, device)
        return None

    def _is_like(self, run: Run, phase: Phase) -> bool:
        """Whether a phase of another run differs from ours in nothing but the size of its work."""
        names = self._description.components[phase]
        return (
            run.pipeline_class == self._run.pipeline_class
            and all(run.fingerprints.get(name) == self._run.fingerprints[name] for name in names)
            and all(run.engine.get(name) == self._run.engine.get(name) for name in engine_fields(phase))
        )

    def _scale(self, work: Work, measured: _Measured) -> float:
        """Our ``work`` an object over that of the run that was measured."""
        return 1.0 if measured.is_own else self._mean(work) / work(measured.run.sampling)

    def _mean(self, work: Work) -> float:
        """Of ``work`` over the rows of the prompts, with what each asks for itself."""
        sizes = self._planned.sizes
        total = sum(count * work(self._run.sampling.with_overrides(**dict(size))) for size, count in sizes.items())
        return total / sum(sizes.values())

    def _work(self, phase: Phase) -> Work:
        """What the time of an object is proportional to."""
        return {Phase.ENCODE: lambda sampling: 1.0, Phase.DENOISE: self._denoise_work, Phase.DECODE: pixels}[phase]

    def _denoise_work(self, sampling: SamplingParams) -> float:
        work = self._figures.workload(sampling)
        forwards = sampling.num_inference_steps * (2 if sampling.is_guided else 1)
        return forwards * (work.flops if work else pixels(sampling))
