"""The bench of prompt adherence: a row a mode, exact videos at no distance from themselves, and what cannot be had."""

import math

import numpy as np
import pytest
import torch

from fastvideo.v1.attention.backends.fp8 import Fp8AttentionBackend
from fastvideo.v1.attention.sliding_tiles import density, tile_layout
from fastvideo.v1.attention.strategy import load_strategy
from fastvideo.v1.entrypoints.bench import adherence
from fastvideo.v1.entrypoints.bench.adherence import bench_adherence
from fastvideo.v1.entrypoints.bench.modes import TILES_CANVAS, Modes
from fastvideo.v1.entrypoints.bench.shapes import Scene


def test_a_mode_is_held_against_the_exact_one_and_both_against_the_prompt(monkeypatch):
    asked = Scene(background="black", colour="red", motion="left")
    wrong = Scene(background="black", colour="blue", motion="left")
    seen = iter([asked, wrong, wrong, wrong])
    clips = []
    monkeypatch.setattr(adherence, "draw_prompts", lambda number, seed: [("a red circle moves left", asked)] * number)
    monkeypatch.setattr(adherence, "see", lambda frames: clips.append(frames) or next(seen))
    figures = bench_adherence(["fp8"], num_videos=2, steps=2, seed=0)
    exact, fp8 = figures["rows"]
    shares = ("background", "colour", "motion", "all_three")
    assert [exact["mode"], *(exact[name] for name in shares)] == ["exact", 1, 0.5, 1, 0.5]
    assert [fp8["mode"], *(fp8[name] for name in shares)] == ["fp8", 1, 0, 1, 0]
    assert (exact["equal"], exact["psnr_mean"], fp8["equal"]) == (2, None, 0)
    assert not np.array_equal(clips[0], clips[1]), "each video has a seed of its own"
    errors = [np.square(clips[i].astype(float) - clips[i + 2]).mean() for i in range(2)]
    decibels = [10 * math.log10(255**2 / error) for error in errors]
    assert fp8["psnr_mean"] == pytest.approx(np.mean(decibels)) and fp8["psnr_lowest"] == pytest.approx(min(decibels))


def test_what_the_machine_cannot_do_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(Fp8AttentionBackend, "obstacle", lambda *_: "no FlashAttention 3 is installed")
    figures = bench_adherence(["fp8+fp8attn"], num_videos=1, steps=1, seed=0)
    assert figures["left_out"] == {"fp8+fp8attn": "no FlashAttention 3 is installed"}
    assert [row["mode"] for row in figures["rows"]] == ["exact"]


def test_windows_are_the_canvas_at_first_and_then_half_of_it(tmp_path):
    strategy = load_strategy(Modes(8, tmp_path).engine("tiles")["sliding_tile_strategy"])
    assert strategy.num_steps == 8 and len(strategy.windows) == 8 * 8, "eight layers"
    tokens = (1 + TILES_CANVAS["num_frames"] // 4, TILES_CANVAS["height"] // 16, TILES_CANVAS["width"] // 16)
    layout = tile_layout(tokens, 0, torch.device("cpu"))
    kept = [density(layout, strategy.of(step, layer)) for step in (0, 1, 2, 7) for layer in (0, 7)]
    assert kept == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("fp4", "mode option 'fp4' does not exist; there are: fp8, fp8attn, skip=THRESHOLD, tiles"),
        ("skip", "mode option 'skip' needs a number, as skip=0.2 has"),
        ("fp8+fp8", "sets quantization twice; leave 'fp8' out"),
    ],
)
def test_an_unknown_mode_is_named(mode, line):
    with pytest.raises(ValueError, match=line):
        bench_adherence([mode], num_videos=1, steps=1, seed=0)
