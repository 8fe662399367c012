"""The search for windows: near windows win, and what it writes is a strategy that runs."""

import json
from pathlib import Path

import torch

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.attention.backends.sdpa import SDPABackend
from fastvideo.v1.attention.strategy import parse_strategy
from fastvideo.v1.cli import _search_tiles, _window
from fastvideo.v1.entrypoints.tile_search import TileSearch
from fastvideo.v1.forward_context import ForwardContext, set_forward_context


def test_each_head_takes_the_window_that_holds_what_it_looks_at():
    grid, heads = (6, 8, 24), 2  # three tiles along w
    search = TileSearch(grid, [(1, 1, 1), (1, 1, 3)])
    tokens = 6 * 8 * 24
    own_tile = (torch.arange(tokens) % 24) // 8
    query = torch.zeros(1, tokens, heads, 4)
    query[:, :, 0, :3] = 40 * torch.nn.functional.one_hot(own_tile, 3).float()  # head 0 looks at its own tile
    key = query.clone()
    value = torch.randn(1, tokens, heads, 4)
    layer = SDPABackend(heads, 4, 0.5, causal=False, layer_index=7)
    for step in range(2):
        with set_forward_context(ForwardContext(step_index=step)):
            search.compare(layer, layer.forward(query, key, value), query, key, value)
    assert search.strategy(dense_steps=1) == {
        "0_7_0": (1, 1, 3),
        "0_7_1": (1, 1, 3),
        "1_7_0": (1, 1, 1),
        "1_7_1": (1, 1, 3),
    }


def test_the_command_writes_a_strategy_that_the_model_follows(tmp_path: Path):
    import argparse

    from fastvideo.v1.cli import add_commands

    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    file = tmp_path / "windows.json"
    size = ["--height", "128", "--width", "256", "--num-frames", "5", "--num-inference-steps", "2"]
    options = parser.parse_args(
        [
            "search-tiles",
            "--model",
            EMBEDDED_MODEL,
            "--prompt",
            "a red circle",
            "--output",
            str(file),
            "--candidates",
            "1,1,1",
            "--dense-steps",
            "1",
            *size,
        ]
    )
    assert options.run is _search_tiles and options.candidates == [_window("1,1,1")]
    assert options.run(options) == 0
    strategy = parse_strategy(file.read_text(), "file")
    config = json.loads((Path(EMBEDDED_MODEL) / "transformer/config.json").read_text())
    assert strategy.num_steps == 2 and len(strategy.windows) == 2 * config["num_layers"]
    assert set(strategy.of(0, 0)) == {(1, 1, 2)} and set(strategy.of(1, 0)) == {(1, 1, 1)}
    generator = VideoGenerator.from_pretrained(
        EMBEDDED_MODEL, attention_backend="SLIDING_TILE_ATTN", sliding_tile_strategy=str(file)
    )
    request = {"height": 128, "width": 256, "num_frames": 5, "num_inference_steps": 2}
    assert generator.generate_video("a red circle", **request).frames.shape == (5, 128, 256, 3)
