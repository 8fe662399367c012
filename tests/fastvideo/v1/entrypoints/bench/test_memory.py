"""What the meta device says of memory is what a device's allocator would have seen."""

import json
from pathlib import Path

import pytest
import torch

from fastvideo.v1.distributed.cost import memory_bytes
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.entrypoints.bench.memory import (
    META,
    SYSTEMS,
    Canvas,
    LiveMemory,
    bench_memory,
    component_needs,
    load_config,
)
from fastvideo.v1.models.dits.workload import dit_workload
from fastvideo.v1.pipelines.phase import Phase

BENCHMARKS = Path(__file__).parents[5] / "infra" / "benchmarks"

KIB = 1024


def test_the_peak_is_of_what_lives_at_once():
    with LiveMemory() as live:
        x = torch.zeros(256, device="meta")
        y = (x + 1) + 1  # the sum in the middle is gone once the second is made
        assert live.now == 2 * KIB and live.peak == 3 * KIB
        view = y.view(16, 16)[2:]
        view.add_(1)
        assert live.now == 2 * KIB, "views and work in place are no new memory"
        del x, y
        assert live.now == KIB, "a view keeps the whole"
        del view
    assert live.now == 0 and live.peak == 3 * KIB


@pytest.mark.parametrize(
    "system, billions",
    [
        ("wan21_t2v_1.3B", 1.42),
        ("wan21_t2v_14B", 14.3),
        ("wan21_i2v_14B", 16.4),
        ("wan22_ti2v_5B", 5.0),
        ("hunyuanvideo_13B", 12.8),
    ],
)
def test_every_phase_of_a_system_at_full_size(system, billions):
    """The weights are as many as published, in bfloat16; a small canvas needs little more."""
    canvas = {"height": 128, "width": 128, "num_frames": 5}
    rows = {row["phase"]: row for row in bench_memory([system], canvas)["rows"]}
    assert list(rows) == ["encode", "denoise", "decode"]
    assert rows["denoise"]["weights_gib"] == pytest.approx(2e9 * billions / 2**30, rel=0.03)
    for row in rows.values():
        assert row["weights_gib"] < row["peak_gib"] < row["weights_gib"] + 2


def test_a_larger_canvas_needs_more_by_its_tokens():
    """What is kept of the texts is the same on each."""
    [part] = [part for part in SYSTEMS["wan21_t2v_1.3B"].components if part.phase is Phase.DENOISE]
    small, middle, large = (component_needs(part, Canvas(side, side, 9), META)[1] for side in (256, 512, 768))
    assert (large - middle) / (middle - small) == pytest.approx((9 - 4) / (4 - 1), rel=0.02) and middle > small


def test_an_unknown_system_is_named():
    with pytest.raises(ValueError, match="no system 'wan3'; there are: wan21_t2v_1"):
        bench_memory(["wan3"], {})


@pytest.mark.parametrize("system, branches", [("wan21_t2v_1.3B", 2), ("wan21_i2v_14B", 2), ("hunyuanvideo_13B", 1)])
def test_layouts_are_chosen_by_nearly_the_memory_that_was_computed(system, branches):
    """Of a guided step of Wan: what the first branch leaves the second is in both."""
    rows = json.loads((BENCHMARKS / "memory_h100.json").read_text())["rows"]
    [row] = [row for row in rows if (row["system"], row["phase"]) == (system, "denoise")]
    height, width, frames = (int(side) for side in row["canvas"].split("x"))
    latent_size = ((frames - 1) // 4 + 1, height // 8, width // 8)
    work = dit_workload(load_config(system), latent_size, row["weights_gib"] * 2**30, branches)
    assert 0.99 < memory_bytes(work, ParallelLayout()) / 2**30 / row["peak_gib"] < 1.1
    with_cfg = ParallelLayout(cfg=branches)
    activations = [memory_bytes(work, layout) - work.weight_bytes for layout in (with_cfg, ParallelLayout())]
    assert activations[0] < 0.9 * activations[1] if branches == 2 else activations[0] == activations[1]
