"""What the meta device says of memory is what a device's allocator would have seen."""

import pytest
import torch

from fastvideo.v1.entrypoints.bench.memory import LiveMemory, bench_memory

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


def test_a_larger_canvas_needs_more():
    small, large = (
        bench_memory(["wan21_t2v_1.3B"], {"height": side, "width": side, "num_frames": 9})["rows"][1]
        for side in (256, 512)
    )
    activations = [row["peak_gib"] - row["weights_gib"] for row in (small, large)]
    assert activations[1] == pytest.approx(4 * activations[0], rel=0.2)


def test_an_unknown_system_is_named():
    with pytest.raises(ValueError, match="no system 'wan3'; there are: wan21_t2v_1"):
        bench_memory(["wan3"], {})
