"""The model of overheads: its shares are those of a run counted out second by second."""

from pathlib import Path

import pytest

from fastvideo.v1.entrypoints.bench.overhead import Parts, bench_overhead
from fastvideo.v1.pipelines.phase import Phase

PARTS = Parts(work={Phase.ENCODE: 0.1, Phase.DENOISE: 40.0, Phase.DECODE: 0.9}, a_shard=30.0, a_sample=0.05, texts=100)
FIGURES = Path(__file__).parents[5] / "infra/benchmarks"


def test_the_share_is_that_of_a_run_counted_out():
    sizes = {Phase.ENCODE: 100, Phase.DENOISE: 20, Phase.DECODE: 50}
    shards, work = (1 + 5 + 2) * 30.0, 100 * 41.0  # of one hundred samples
    beside = shards + 100 * 0.05
    assert PARTS.overhead(sizes) == pytest.approx(beside / (beside + work))


def test_shards_of_the_told_seconds_have_the_told_share():
    seconds = PARTS.shard_seconds_at(0.05)
    sizes = {Phase.ENCODE: 100, Phase.DENOISE: seconds / 40.0, Phase.DECODE: seconds / 0.9}
    assert PARTS.overhead(sizes) == pytest.approx(0.05)


def test_at_the_default_shard_overhead_is_under_one_percent():
    rows = bench_overhead(str(FIGURES), orchestration_seconds=2.0)["rows"]
    assert len(rows) == 3 and all(row["overhead"] < 0.01 for row in rows), rows
    assert all(row["shard_samples"] > row["samples_at_5_percent"] for row in rows)


def test_missing_figures_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"dataset_sqlite.json does not exist; name the folder"):
        bench_overhead(str(tmp_path), None)
