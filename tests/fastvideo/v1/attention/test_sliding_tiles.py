"""Sliding tile attention against dense attention in float32 under a mask written out tile by tile."""

import json
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from fastvideo.v1.attention import DistributedAttention, _Backend
from fastvideo.v1.attention.backends import sliding_tile
from fastvideo.v1.attention.backends.sliding_tile import sliding_tile_attention
from fastvideo.v1.attention.layer import select_attention_backends
from fastvideo.v1.attention.sliding_tiles import TILE, density, tile_layout, tiles_seen
from fastvideo.v1.attention.strategy import parse_strategy
from fastvideo.v1.forward_context import ForwardContext, set_forward_context

CPU = torch.device("cpu")


def expected_mask(grid, num_text, window) -> torch.Tensor:
    """``[s s]``: who sees whom, from the coordinates of tokens alone."""
    counts = [-(-size // tile) for size, tile in zip(grid, TILE, strict=True)]
    tiles = list(product(*map(range, counts)))
    seen = [
        all(
            abs(k - min(max(q, size // 2), count - 1 - size // 2)) <= size // 2
            for q, k, count, size in zip(query, key, counts, window, strict=True)
        )
        for query, key in product(tiles, repeat=2)
    ]
    own = [tuple(at // tile for at, tile in zip(token, TILE, strict=True)) for token in product(*map(range, grid))]
    index = torch.tensor([tiles.index(tile) for tile in own])
    video = torch.tensor(seen).view(len(tiles), -1)[index][:, index]
    return F.pad(video, (0, num_text, 0, num_text), value=True)


def dense(query, key, value, masks) -> torch.Tensor:
    query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=masks[None]).transpose(1, 2)


CASES = [
    pytest.param((6, 16, 16), 0, [(1, 1, 1), (1, 2, 1), (1, 1, 2)], id="whole tiles"),
    pytest.param((12, 24, 8), 37, [(1, 1, 1), (2, 3, 1), (1, 3, 1)], id="with text"),
    pytest.param((7, 10, 9), 5, [(1, 1, 1), (2, 1, 2), (2, 2, 2)], id="smaller tiles at the edges"),
    pytest.param((18, 8, 16), 0, [(3, 1, 1), (1, 1, 1), (2, 1, 1)], id="windows at the border"),
]


def test_a_causal_layer_is_refused():
    layer = DistributedAttention(2, 16, causal=True)
    with pytest.raises(ValueError, match=r"SLIDING_TILE_ATTN .* cannot serve a causal layer"):
        layer.select(CPU, torch.float32, "SLIDING_TILE_ATTN")


@pytest.mark.parametrize("scores_at_once", [sliding_tile.SCORES_AT_ONCE, 0], ids=["all at once", "block by block"])
@pytest.mark.parametrize(("grid", "num_text", "windows"), CASES)
def test_matches_dense_attention_under_the_mask(monkeypatch, grid, num_text, windows, scores_at_once):
    monkeypatch.setattr(sliding_tile, "SCORES_AT_ONCE", scores_at_once)
    tokens = grid[0] * grid[1] * grid[2] + num_text
    query, key, value = (torch.randn(2, tokens, len(windows), 16) for _ in range(3))
    out = sliding_tile_attention(query, key, value, tile_layout(grid, num_text, CPU), tuple(windows), 16**-0.5)
    masks = torch.stack([expected_mask(grid, num_text, window) for window in windows])
    torch.testing.assert_close(out, dense(query, key, value, masks), rtol=0, atol=3e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("grid", "num_text", "windows"), CASES)
def test_the_gpu_kernel_matches_dense_attention_under_the_mask(grid, num_text, windows):
    tokens = grid[0] * grid[1] * grid[2] + num_text
    query, key, value = (torch.randn(1, tokens, len(windows), 128, device="cuda").bfloat16() for _ in range(3))
    layout = tile_layout(grid, num_text, torch.device("cuda", 0))
    out = sliding_tile_attention(query, key, value, layout, tuple(windows), 128**-0.5)
    masks = torch.stack([expected_mask(grid, num_text, window) for window in windows]).cuda()
    exact = dense(query, key, value, masks)
    assert (out.float() - exact).norm() / exact.norm() < 4e-3, "bfloat16 rounds probabilities and results"


def test_an_even_window_as_large_as_an_axis_sees_all_of_it():
    assert tiles_seen((3, 6, 10), (3, 6, 10)).all()


def test_published_canvas_and_window_keep_the_published_share():
    layout = tile_layout((30, 48, 80), 0, CPU)
    assert density(layout, ((3, 3, 5),)) == pytest.approx(3 / 5 * 3 / 6 * 5 / 10)


def test_a_layer_follows_the_strategy_of_the_running_step():
    grid, windows = (6, 16, 16), {"0_0": (1, 2, 2), "1_0": (1, 1, 1)}
    entries = {f"{place}_{head}": window for place, window in windows.items() for head in range(2)}
    strategy = parse_strategy(json.dumps(entries), "here")
    layer = DistributedAttention(2, 16)
    select_attention_backends(layer, CPU, torch.float32, _Backend.SLIDING_TILE_ATTN)
    query, key, value = (torch.randn(1, 6 * 16 * 16, 2, 16) for _ in range(3))
    for step, window in enumerate(windows.values()):
        with set_forward_context(ForwardContext(step_index=step, token_grid=grid, tile_strategy=strategy)):
            out = layer(query, key, value)
        masks = torch.stack([expected_mask(grid, 0, window)] * 2)
        torch.testing.assert_close(out, dense(query, key, value, masks), rtol=0, atol=3e-6)
    with (
        set_forward_context(ForwardContext(step_index=2, token_grid=grid, tile_strategy=strategy)),
        pytest.raises(ValueError, match="says nothing of step 2, layer 0; it has 2 steps"),
    ):
        layer(query, key, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "no JSON object of windows"),
        ('{"0_0": [1, 1, 1]}', '"step_layer_head"'),
        ('{"0_0_0": [1, 1]}', '"step_layer_head"'),
        ('{"0_0_1": [1, 1, 1]}', "step 0, layer 0 lacks some of its heads"),
        ("{}", "is empty"),
    ],
)
def test_a_broken_strategy_names_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_strategy(text, "file.json")
