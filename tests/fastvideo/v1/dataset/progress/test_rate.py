"""The speed of a run, by its ledger's newest rows, and the time that is left."""

import json

import pytest

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import LedgerRow, LedgerWriter
from fastvideo.v1.dataset.progress.rate import read_rates, seconds_left
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.pipelines.phase import Phase


@pytest.fixture
def run(make_config) -> Run:
    return plan_run(make_config(*(json.dumps({"prompt": f"p{number}"}) for number in range(10)))).run


def note(run: Run, phase: Phase, starts: list[float], seconds: float | None, attempt: str = "one") -> None:
    with LedgerWriter(run, phase, attempt) as ledger:
        for number, started in enumerate(starts):
            id = f"{attempt}-{number}-{started}"
            ledger.add(LedgerRow(id=id, bytes=1, sha256="", started=started, seconds=seconds))


def test_jobs_side_by_side_add_up(run: Run) -> None:
    for attempt in ("one", "two"):
        note(run, Phase.DENOISE, [1000.0 + 60 * number for number in range(10)], 60.0, attempt)
    note(run, Phase.DENOISE, [9000.0], None, "recovered")
    rate = read_rates(run)[Phase.DENOISE]
    assert (rate.per_hour, rate.seconds, rate.last) == (120.0, 60.0, 1600.0)
    assert read_rates(run)[Phase.DECODE] is None


def test_what_came_before_a_pause_does_not_count(run: Run) -> None:
    note(run, Phase.DECODE, [1000.0 + number for number in range(50)], 1.0)
    note(run, Phase.DECODE, [90_000.0 + 10 * number for number in range(5)], 10.0)
    assert read_rates(run)[Phase.DECODE].per_hour == 360.0


def test_texts_that_went_together_share_their_time(run: Run) -> None:
    note(run, Phase.ENCODE, [1000.0] * 100, 0.36)
    assert read_rates(run)[Phase.ENCODE].per_hour == pytest.approx(10_000.0)


def test_the_end_is_told_by_what_is_missing_once_every_phase_has_a_rate(run: Run) -> None:
    note(run, Phase.ENCODE, [0.0, 1.0], 1.0)
    note(run, Phase.DENOISE, [0.0, 100.0], 100.0)
    assert seconds_left(run_status(run.output), read_rates(run)) is None
    note(run, Phase.DECODE, [0.0, 10.0], 10.0)
    assert seconds_left(run_status(run.output), read_rates(run)) == pytest.approx(11 * 1 + 10 * 100 + 10 * 10)
