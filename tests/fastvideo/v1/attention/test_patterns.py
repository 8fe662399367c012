"""Attention patterns against dense attention under the same mask, float32."""

import pytest
import torch

from fastvideo.v1.attention import DistributedAttention, GlobalLocal, LocalAttention, Temporal, _Backend
from fastvideo.v1.attention.backends.sliding_tile import SlidingTileBackend
from fastvideo.v1.attention.patterns import QUERIES, _window_mask
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, init_world
from fastvideo.v1.distributed.sequence import TokenShards
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes


def masked(query, key, value, seen):
    query, key, value = (x.double().transpose(1, 2) for x in (query, key, value))
    scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def seen_by(pattern, tokens):
    at = torch.arange(tokens)
    if isinstance(pattern, Temporal):
        position = at % (tokens // pattern.num_frames)
        return position[:, None] == position[None]
    is_global = at < pattern.num_global
    return is_global[:, None] | is_global[None] | ((at[:, None] - at[None]).abs() <= pattern.window)


@pytest.mark.parametrize("layer", [LocalAttention, DistributedAttention])
@pytest.mark.parametrize(
    ("pattern", "tokens"),
    [
        (Temporal(3), 21),
        (Temporal(1), 5),
        (GlobalLocal(4, 2), 33),
        (GlobalLocal(0, 0), 7),
        (GlobalLocal(3, 100), 20),
        (GlobalLocal(5, 7), 2 * QUERIES + 9),
    ],
    ids=str,
)
def test_a_pattern_is_dense_attention_under_its_mask(layer, pattern, tokens):
    query, key, value = (torch.randn(2, tokens, 2, 16) for _ in range(3))
    out = layer(2, 16)(query, key, value, pattern=pattern)
    exact = masked(query, key, value, seen_by(pattern, tokens))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_mask_is_built_once_a_shape():
    _window_mask.cache_clear()
    for _ in range(2):
        tensors = (torch.randn(1, 5 * QUERIES, 1, 8) for _ in range(3))
        LocalAttention(1, 8)(*tensors, pattern=GlobalLocal(0, 9))
    assert _window_mask.cache_info().misses == 3, "the first, those in between, the last"


def test_what_a_pattern_cannot_serve_is_said():
    tensors = [torch.randn(1, 20, 2, 16)] * 3
    with pytest.raises(ValueError, match="num_frames=3 must divide the 20 tokens"):
        LocalAttention(2, 16)(*tensors, pattern=Temporal(3))
    with pytest.raises(ValueError, match="causal attention has no patterns"):
        LocalAttention(2, 16, causal=True)(*tensors, pattern=Temporal(4))
    layer = DistributedAttention(2, 16)
    layer.select(torch.device("cpu"), torch.float32, _Backend.SLIDING_TILE_ATTN)
    assert isinstance(layer.backend, SlidingTileBackend)
    with pytest.raises(ValueError, match="SlidingTileBackend is approximate"):
        layer(*tensors, pattern=Temporal(4))


def check_ranks(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, 42, 2, 16) for _ in range(3))
    init_world(ParallelLayout(ulysses=2), "cpu", TIMEOUT)
    tokens = TokenShards(42)
    mine = [tokens.take(x) for x in (query, key, value)]
    for pattern in (Temporal(3), GlobalLocal(4, 2)):
        out = tokens.gather(DistributedAttention(2, 16)(*mine, tokens, pattern).flatten(2))
        exact = masked(query, key, value, seen_by(pattern, 42)).flatten(2)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
    close_world()
    init_world(ParallelLayout(ring=2), "cpu", TIMEOUT)
    with pytest.raises(ValueError, match="cannot go by a ring of 2; set ring_size to 1"):
        DistributedAttention(2, 16)(*mine, tokens, Temporal(3))
    close_world()


@pytest.mark.slow
def test_a_pattern_is_of_the_whole_sequence_whatever_a_rank_holds(fresh_seed):
    run_processes(2, check_ranks, fresh_seed)
