"""Adapters beside linear layers: against the dense sum in float64, and split over ranks."""

import pytest
import torch
import torch.nn.functional as F

from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.layers import linear
from fastvideo.v1.layers.linear import LinearBase, MergedColumnParallelLinear, MergedRowParallelLinear
from fastvideo.v1.layers.low_rank import WeightDelta
from fastvideo.v1.layers.mlp import GeluMLP

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


def draw_delta(input_size: int, output_size: int, rank: int = 3) -> WeightDelta:
    return WeightDelta("lora", torch.randn(output_size, rank), torch.randn(rank, input_size), 0.5)


def fill(layer: LinearBase, weights: list[torch.Tensor], bias: torch.Tensor | None = None) -> None:
    for part, weight in enumerate(weights):
        layer.load_weight(layer.weight, weight, part)
    if bias is not None:
        layer.load_bias(layer.bias, bias)


def dense(delta: WeightDelta, weight: torch.Tensor) -> torch.Tensor:
    return weight.double() + delta.strength * delta.up.double() @ delta.down.double()


@pytest.mark.parametrize("device", DEVICES)
def test_an_mlp_with_adapters_is_the_dense_sum(device):
    mlp = GeluMLP(24, 40)
    deltas = {mlp.up: draw_delta(24, 40), mlp.down: draw_delta(40, 24)}
    weights = {mlp.up: torch.randn(40, 24) / 5, mlp.down: torch.randn(24, 40) / 6}
    biases = {mlp.up: torch.randn(40), mlp.down: torch.randn(24)}
    for layer, weight in weights.items():
        fill(layer, [weight], biases[layer])
    mlp.to(device)
    plain = mlp(x := torch.randn(2, 7, 24, device=device))
    for layer, delta in deltas.items():
        layer.branch = layer.low_rank_branch(delta, 0)
    hidden = F.linear(x.cpu().double(), dense(deltas[mlp.up], weights[mlp.up]), biases[mlp.up].double())
    hidden = F.gelu(hidden, approximate="tanh")
    expected = F.linear(hidden, dense(deltas[mlp.down], weights[mlp.down]), biases[mlp.down].double())
    torch.testing.assert_close(mlp(x).cpu().double(), expected, rtol=1e-4, atol=1e-4)
    for layer in deltas:
        layer.branch = None
    assert torch.equal(mlp(x), plain)


def test_ranks_of_a_merged_column_parallel_layer_hold_their_rows_of_every_part(monkeypatch):
    weights, deltas = [torch.randn(size, 10) for size in (8, 4)], [draw_delta(10, 8, 2), draw_delta(10, 4, 5)]
    x, outputs = torch.randn(3, 10), []
    for rank in range(2):
        monkeypatch.setattr(linear, "get_tp_group", lambda rank=rank: ParallelGroup("tensor", rank, 2))
        layer = MergedColumnParallelLinear(10, [8, 4], bias=False)
        fill(layer, weights)
        for part, delta in enumerate(deltas):
            layer.branch = layer.low_rank_branch(delta, part).beside(layer.branch)
        outputs.append(layer(x).split([4, 2], dim=-1))
    for part, delta in enumerate(deltas):
        whole = torch.cat([output[part] for output in outputs], dim=-1)
        torch.testing.assert_close(whole.double(), x.double() @ dense(delta, weights[part]).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [[8], [6, 4]])
def test_ranks_of_a_row_parallel_layer_sum_to_the_whole(monkeypatch, sizes):
    total = sum(sizes)
    weight, bias, delta, x = torch.randn(6, total), torch.randn(6), draw_delta(total, 6), torch.randn(3, total)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(linear, "get_tp_group", lambda rank=rank: ParallelGroup("tensor", rank, 2))
        monkeypatch.setattr(linear, "all_reduce", lambda tensor, group: tensor)
        layer = MergedRowParallelLinear(sizes, 6)
        fill(layer, [weight], bias)
        layer.branch = layer.low_rank_branch(delta, 0)
        parts.append(layer(*(piece.chunk(2, dim=-1)[rank] for piece in x.split(sizes, dim=-1))))
    expected = x.double() @ dense(delta, weight).T + bias.double()
    torch.testing.assert_close(sum(parts).double(), expected, rtol=1e-4, atol=1e-4)
