"""Attention layers against dense softmax in float64, and the choice of their backend."""

import pytest
import torch

from fastvideo.v1.attention import DistributedAttention, LocalAttention, _Backend
from fastvideo.v1.attention.backends import flash_attn
from fastvideo.v1.attention.selector import requested_backend, select_backend

CPU = torch.device("cpu")


def dense(query, key, value, scale, causal):
    query, key, value = (x.double().transpose(1, 2) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("layer", [LocalAttention, DistributedAttention])
@pytest.mark.parametrize(
    ("s", "s_k", "n", "n_k", "causal"), [(7, 7, 3, 3, False), (5, 11, 4, 2, False), (9, 9, 2, 2, True)]
)
def test_attention_matches_dense_softmax(layer, s, s_k, n, n_k, causal):
    query, key, value = torch.randn(2, s, n, 16), torch.randn(2, s_k, n_k, 16), torch.randn(2, s_k, n_k, 16)
    out = layer(num_heads=n, head_size=16, causal=causal)(query, key, value)
    torch.testing.assert_close(out.double(), dense(query, key, value, 16**-0.5, causal), rtol=1e-5, atol=1e-5)


def test_softmax_scale_can_be_given():
    query, key, value = (torch.randn(1, 6, 2, 8) for _ in range(3))
    out = LocalAttention(num_heads=2, head_size=8, softmax_scale=1.0)(query, key, value)
    torch.testing.assert_close(out.double(), dense(query, key, value, 1.0, False), rtol=1e-5, atol=1e-5)


def test_unasked_the_cpu_gets_sdpa_even_from_a_layer_that_does_not_name_it():
    for supported in ((_Backend.SLIDING_TILE_ATTN, _Backend.FLASH_ATTN), (_Backend.FLASH_ATTN, _Backend.TORCH_SDPA)):
        assert select_backend(64, torch.float32, CPU, supported).__name__ == "SDPABackend"


def test_an_explicit_choice_that_cannot_be_had_raises_and_says_what_could():
    choice, message = _Backend.FLASH_ATTN, "needs a CUDA device, not cpu; here you could have: TORCH_SDPA"
    with pytest.raises(ValueError, match=f"{choice} cannot be had: it {message}"):
        select_backend(64, torch.float32, CPU, (choice, _Backend.TORCH_SDPA), requested=choice)


def test_the_environment_variable_is_an_explicit_choice(monkeypatch):
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "FLASH_ATTN")
    query = torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match="FLASH_ATTN cannot be had"):
        LocalAttention(num_heads=2, head_size=8)(query, query, query)
    assert requested_backend("TORCH_SDPA") is _Backend.TORCH_SDPA


def test_an_unknown_name_raises_with_those_that_exist():
    with pytest.raises(ValueError, match="'XFORMERS' does not exist; there are: FLASH_ATTN, TORCH_SDPA"):
        requested_backend("XFORMERS")


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"flash_attn.cute", "flash_attn_interface", "flash_attn"}, 4),
        ({"flash_attn_interface", "flash_attn"}, 3),
        ({"fa3_fwd_interface"}, 3),
        ({"flash_attn"}, 2),
        (set(), None),
    ],
)
def test_the_newest_installed_flash_attention_is_taken(monkeypatch, installed, expected):
    packages = {name.partition(".")[0] for name in installed} | installed
    monkeypatch.setattr(flash_attn, "find_spec", lambda name: object() if name in packages else None)
    monkeypatch.setattr(flash_attn, "import_module", lambda name: type("Module", (), {"flash_attn_func": print}))
    flash_attn.find_kernel.cache_clear()
    assert flash_attn.installed_version.__wrapped__() == expected
    flash_attn.find_kernel.cache_clear()
