"""The job that only commits does so as a real one would, and the meters count what was done."""

from pathlib import Path

import pytest

from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.recovery import Recovery, index_recovered
from fastvideo.v1.dataset.progress.scan import scan
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.entrypoints.bench.dataset import Meter, by_tenths, prepare
from fastvideo.v1.pipelines.phase import Phase


class Killed(Exception):
    """In place of a kill."""


def die() -> None:
    raise Killed


def test_a_shard_is_committed_killed_half_way_and_finished(tmp_path: Path) -> None:
    config = prepare(tmp_path, num_samples=20, num_shards=2)
    run = plan_run(config).run
    shards = write_shards(run, scan(run), config, 0)
    assert [(shard.phase, shard.count) for shard in shards] == [
        (Phase.ENCODE, 3),
        (Phase.DENOISE, 10),
        (Phase.DENOISE, 10),
        (Phase.DECODE, 20),
    ]

    def launch(meter: Meter, events: list[dict]) -> None:
        for shard in shards:
            options = {"--output": config.output, "--run": run.name, "--phase": shard.phase, "--shard": shard.path}
            arguments = [word for option in options.items() for word in option]
            meter.launch("stage_job", arguments, on_event=events.append)

    first = Meter(tmp_path, stop_after=1, on_stop=die)
    with pytest.raises(Killed):
        launch(first, [])
    assert first.num_objects == 3 + 6
    assert read_ledger(run, Phase.DENOISE).num_rows == 6, "an error writes what it has; kill -9 would not"

    events: list[dict] = []
    second = Meter(tmp_path, stop_after=None, on_stop=die)
    with second.counting():
        launch(second, events)
        assert not second.requests, "a job's own requests are no orchestration"
        found = scan(run)
    assert second.requests["list"] > 0 and len(second.ends) == 4
    assert [event["event"] for event in events].count("skipped") == 3 + 6
    assert all(not part.missing and not part.failed for part in found.values())
    assert index_recovered(run, found) == Recovery(indexed=0, damaged=0)


def test_tenths_leave_out_what_was_spent_on_committing() -> None:
    ends = [(10.0 + 3.0 * number, 2.0 * number) for number in range(1, 11)]
    tenths = by_tenths([{"first_shard_at": 10.0, "ended": 50.0, "ends": ends}])
    assert [row["ms_a_shard"] for row in tenths] == pytest.approx([1000.0] * 10)


def test_samples_that_make_no_whole_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples=15 must be a multiple of 10"):
        prepare(tmp_path, num_samples=15, num_shards=2)
