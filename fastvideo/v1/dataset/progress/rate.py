"""How fast a run goes, by the newest rows of its ledger."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fastvideo.v1.dataset.layout import ledger_dir
from fastvideo.v1.dataset.progress.status import RunStatus
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import from_parquet
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

_ROWS, _FILES = 512, 32  # the newest, of which a rate is made
_PAUSE_SECONDS = 600.0  # at least, and ten times an object's: whoever is silent for so long was not at work
_COLUMNS = ["seconds", "started", "attempt"]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """``seconds`` of work an object, and when the last was finished (1970), a minute late at most."""

    per_hour: float
    seconds: float
    last: float


def read_rates(run: Run) -> dict[Phase, Rate | None]:
    """The phases' rates since the last pause; None where nothing was made yet."""
    return {phase: _read_rate(run, phase) for phase in ALL_PHASES}


def seconds_left(status: RunStatus, rates: Mapping[Phase, Rate | None]) -> float | None:
    """Until everything is made, phase after phase at its rate; None while one that lacks something has none."""
    total = 0.0
    for phase, counts in status.phases.items():
        if counts.missing:
            rate = rates[phase]
            if rate is None:
                return None
            total += 3600 * counts.missing / rate.per_hour
    return total


def _read_rate(run: Run, phase: Phase) -> Rate | None:
    tables: list[pa.Table] = []
    for info in reversed(run.output.list(ledger_dir(run.name, phase))[-_FILES:]):  # names begin with their time
        try:
            table = from_parquet(run.output.read(info.path), _COLUMNS)
        except FileNotFoundError:  # merged into another
            continue
        tables.append(table.filter(table["seconds"].is_valid()))
        if sum(map(len, tables)) >= _ROWS:
            break
    rows = [row for table in tables for row in table.to_pylist()]
    return _rate(rows) if rows else None


def _rate(rows: list[dict[str, float]]) -> Rate:
    """Over the time from the first start to the last end; of a batch, whose rows have a share of it each, over all."""
    rows = sorted(rows, key=lambda row: row["started"] + row["seconds"])[-_ROWS:]
    ends = np.array([row["started"] + row["seconds"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    pauses = np.flatnonzero(np.diff(ends) > max(_PAUSE_SECONDS, 10 * float(np.median(seconds))))
    first = int(pauses[-1]) + 1 if len(pauses) else 0
    work: Counter[str] = Counter()
    for row in rows[first:]:
        work[str(row["attempt"])] += row["seconds"]  # type: ignore[assignment]
    span = max(float(ends[-1]) - min(row["started"] for row in rows[first:]), *work.values(), 1e-3)
    count = len(rows) - first
    return Rate(per_hour=3600 * count / span, seconds=float(seconds[first:].mean()), last=float(ends[-1]))
