"""Layouts at full size, by arithmetic."""

import pytest

from fastvideo.v1.entrypoints.bench.memory import Canvas
from fastvideo.v1.entrypoints.bench.parallel import bench_parallel, full_size_workload


@pytest.mark.parametrize(
    "system, canvas, tflop",
    [("wan21_t2v_14B", Canvas(480, 832, 81), 1678.3), ("hunyuanvideo_13B", Canvas(544, 960, 129), 4266.4)],
)
def test_the_work_is_that_of_the_measured_forwards(system, canvas, tflop):
    """``infra/benchmarks/dit_*_h100.json`` hold TFLOP and seconds of the same."""
    assert full_size_workload(system, canvas, 1).flops == pytest.approx(tflop * 1e12, rel=1e-4)


def test_every_way_to_share_has_its_row_and_each_goal_its_layout():
    figures = bench_parallel(["wan21_t2v_1.3B_480p"], [2, 8], "h100", "nvlink")
    layouts = {(row["gpus"], row["layout"]) for row in figures["collectives"]}
    assert layouts == {(2, "cfg=2"), (2, "ulysses=2"), (2, "ring=2"), (2, "tensor=2"), (2, "data=2, fsdp=2")} | {
        (8, "ring=8"),  # 12 heads
        (8, "data=8, fsdp=8"),
    }
    chosen = {(row["gpus"], row["goal"]): row for row in figures["rows"]}
    assert chosen[8, "throughput"]["layout"] == "data=8"
    assert chosen[8, "latency"]["layout"] == "cfg=2 x ulysses=4"
    assert chosen[8, "latency"]["sample_seconds"] < chosen[8, "throughput"]["sample_seconds"]
    assert chosen[8, "latency"]["samples_per_hour"] < chosen[8, "throughput"]["samples_per_hour"]


def test_an_unknown_workload_is_named():
    with pytest.raises(ValueError, match="no workload 'wan3'; there are: wan21_t2v_1"):
        bench_parallel(["wan3"], [2], "h100", "nvlink")
