"""How far a run is, told from storage alone."""

from dataclasses import asdict, dataclass
from typing import Any

from fastvideo.v1.dataset.objects.store import Store
from fastvideo.v1.dataset.progress.scan import Scan, scan
from fastvideo.v1.dataset.runs.run import Run, open_run
from fastvideo.v1.pipelines.phase import Phase


@dataclass(frozen=True, kw_only=True)
class PhaseStatus:
    """``total`` is done + failed + blocked + missing; ``blocked`` waits for something that failed before it."""

    total: int
    done: int
    failed: int
    blocked: int
    missing: int
    unindexed: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The phases of one run."""

    run: str
    created: str
    phases: dict[Phase, PhaseStatus]

    @property
    def exit_code(self) -> int:
        """3 while anything can still be made, else 2 if something failed, else 0."""
        if any(phase.missing for phase in self.phases.values()):
            return 3
        return 2 if any(phase.failed for phase in self.phases.values()) else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        phases = {str(phase): asdict(status) for phase, status in self.phases.items()}
        return {"run": self.run, "created": self.created, "phases": phases, "exit_code": self.exit_code}


def run_status(output: str | Store, run: str | None = None) -> RunStatus:
    """The status of a run in ``output``, the newest by default."""
    opened = open_run(output, run)
    return summarize(opened, scan(opened))


def summarize(run: Run, found: Scan) -> RunStatus:
    """The counts of a scan at hand."""
    return RunStatus(
        run=run.name,
        created=run.created,
        phases={
            phase: PhaseStatus(
                total=part.total,
                done=part.done,
                failed=part.failed,
                blocked=part.blocked,
                missing=part.missing,
                unindexed=len(part.unindexed),
                bytes=part.bytes,
            )
            for phase, part in found.items()
        },
    )
