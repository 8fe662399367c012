"""What the runner of a wave tells of it, beside its shards, for whoever watches from elsewhere. Nothing trusts it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastvideo.v1.dataset.layout import wave_dir
from fastvideo.v1.dataset.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class PhaseReport:
    """One phase of a wave: ``decided`` of ``total`` rows, that is made, found there, or left to another wave.

    Among them, ``bad`` are out of tries, and ``committed`` were made by this runner in ``gpu_seconds`` of computing.
    """

    total: int = 0
    decided: int = 0
    bad: int = 0
    committed: int = 0
    gpu_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WaveReport:
    """``seconds`` since the runner began; ``failed`` shards with their cause and message."""

    phases: Mapping[str, PhaseReport]
    seconds: float
    is_over_budget: bool = False
    failed: list[dict[str, str]] = field(default_factory=list)

    @property
    def committed(self) -> int:
        """Objects that this runner made."""
        return sum(phase.committed for phase in self.phases.values())

    @property
    def percent(self) -> float:
        """How much of the rows is decided, 0 to 100."""
        total = sum(phase.total for phase in self.phases.values())
        decided = sum(phase.decided for phase in self.phases.values())
        return 100.0 * decided / total if total else 100.0

    @property
    def bad_share(self) -> float:
        """The share of a phase's rows that is out of tries, of the phase where it is largest."""
        return max((phase.bad / phase.total for phase in self.phases.values() if phase.total), default=0.0)

    @property
    def gpu_seconds_each(self) -> float | None:
        """GPU-seconds of computing that a video takes; None before each phase has made one."""
        working = [phase for phase in self.phases.values() if phase.total]
        if not working or not all(phase.committed for phase in working):
            return None
        return sum(phase.gpu_seconds / phase.committed for phase in working)

    @property
    def seconds_left(self) -> float | None:
        """The wave's own pace applied to what is left; None before each phase that has work left has made one."""
        left = done = 0.0
        for phase in self.phases.values():
            rest = phase.total - phase.decided
            if rest and not phase.committed:
                return None
            each = phase.gpu_seconds / phase.committed if phase.committed else 0.0
            left, done = left + rest * each, done + phase.gpu_seconds
        return self.seconds * left / done if done else None if left else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WaveReport":
        """The report of :meth:`to_dict`."""
        phases = {name: PhaseReport(**phase) for name, phase in values["phases"].items()}
        return cls(**{**values, "phases": phases})


def write_report(run: Run, wave: str, report: WaveReport) -> None:
    """Leaves the report of the phases that this runner is for, over its last."""
    run.output.overwrite(f"{wave_dir(run.name, wave)}/{'+'.join(report.phases)}.json", _dump(report))


def read_reports(run: Run, wave: str) -> list[WaveReport]:
    """What the runners of a wave have told, in order of phases; none after it is closed."""
    paths = [info.path for info in run.output.list(wave_dir(run.name, wave)) if info.path.endswith(".json")]
    try:
        reports = [WaveReport.from_dict(json.loads(data)) for data in run.output.read_many(paths)]
    except FileNotFoundError:  # it is being closed
        return []
    return sorted(reports, key=lambda report: list(report.phases), reverse=True)  # "encode" > "denoise" > "decode"


def _dump(report: WaveReport) -> bytes:
    return json.dumps(report.to_dict()).encode()
