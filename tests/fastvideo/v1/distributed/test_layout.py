"""Layouts: which sizes fit, and what is said where they do not."""

import subprocess
import sys

import pytest

from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.registry import build_pipeline


def test_sizes_multiply():
    layout = ParallelLayout(data=3, cfg=2, ulysses=4, ring=5, tensor=7)
    assert (layout.sequence, layout.model_size, layout.size) == (20, 280, 840)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ParallelLayout()),
        ({"num_gpus": 4}, ParallelLayout(data=4)),
        ({"num_gpus": 2, "sp_size": 2}, ParallelLayout(ulysses=2)),
        ({"num_gpus": 16, "sp_size": 4, "ring_size": 2, "tp_size": 2}, ParallelLayout(2, 1, 2, 2, 2)),
        ({"num_gpus": 4, "cfg_size": 2, "sp_size": 2, "ring_size": 2}, ParallelLayout(cfg=2, ring=2)),
    ],
)
def test_gpus_that_a_sample_leaves_over_take_other_samples(settings, expected):
    assert FastVideoArgs(**settings).layout == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tp_size": 2}, r"num_gpus=1 must be .* tp_size=2 = 2; nearest: num_gpus=2"),
        ({"num_gpus": 7, "sp_size": 2, "cfg_size": 2}, r"cfg_size=2 x sp_size=2 .* = 4; nearest: num_gpus=8"),
        ({"num_gpus": 8, "sp_size": 8, "ring_size": 3}, r"ring_size must divide sp_size; nearest: ring_size=4"),
        ({"num_gpus": 4, "cfg_size": 4}, r"cfg=4 .* at most 2; nearest: .* cfg=2 "),
        ({"num_gpus": 0}, r"num_gpus=0 .* at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_the_nearest(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        FastVideoArgs(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layout", "num_processes", "nearest"),
    [
        (ParallelLayout(data=3, tensor=2), 8, ParallelLayout(data=4, tensor=2)),
        (ParallelLayout(ulysses=2), 3, ParallelLayout(ulysses=3)),
        (ParallelLayout(cfg=2, ulysses=2), 2, ParallelLayout(ulysses=2)),
        (ParallelLayout(data=5, cfg=2), 1, ParallelLayout()),
    ],
)
def test_another_number_of_processes_gets_the_nearest_layout(layout, num_processes, nearest):
    with pytest.raises(ValueError, match="must have as many processes as there are") as error:
        layout.check_num_processes(num_processes)
    assert str(error.value).endswith(f"nearest: {nearest}")
    assert all(f"{axis}=" in str(error.value) for axis in ("data", "cfg", "ring", "ulysses", "tensor"))


@pytest.mark.parametrize("num_processes", [1, 2, 6, 64, 97, 720])
def test_the_nearest_layout_has_the_processes(num_processes):
    layout = ParallelLayout(data=2, cfg=2, tensor=3).nearest(num_processes)
    assert layout.size == num_processes
    assert layout.nearest(num_processes) == layout


def test_a_layout_loads_no_torch():
    code = "import sys, fastvideo.v1.distributed.layout; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_pipeline_is_not_built_in_another_world_than_asked_for():
    with pytest.raises(ValueError, match=r"tensor=2 .* is asked for in a world of .* call init_world"):
        build_pipeline(FastVideoArgs(num_gpus=2, tp_size=2))
