"""Attention of 8-bit floats against dense attention: on the CPU, where inputs are rounded, and on a Hopper GPU."""

import pytest
import torch

from fastvideo.v1.attention import DistributedAttention, LocalAttention, _Backend
from fastvideo.v1.attention.backends.fp8 import Fp8AttentionBackend, round_heads

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(
    not torch.cuda.is_available()
    or Fp8AttentionBackend.obstacle(128, torch.bfloat16, torch.device("cuda", 0)) is not None,
    reason="needs FlashAttention 3 on Hopper",
)
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_kernel])]
GAINS = {"flat": 1.0, "peaky": 4.0, "very peaky": 8.0}  # standard deviation of the scores
LARGEST_ERROR = {"flat": 0.02, "peaky": 0.11, "very peaky": 0.17}


def draw(tokens, gain, device, bias=0.0):
    query, key, value = (torch.randn(2, tokens, 3, 128, device=device) for _ in range(3))
    shared = torch.randn(2, 1, 3, 128, device=device)
    return query * gain**0.5, key * gain**0.5 + bias * shared, value + shared


def distance(out, exact):
    return float((out.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gain", GAINS)
def test_the_error_is_that_of_three_bits_of_mantissa(gain, device):
    inputs = [x.bfloat16() for x in draw(300 if device == "cpu" else 5000, GAINS[gain], device)]
    layer = DistributedAttention(3, 128)
    layer.select(torch.device(device), torch.bfloat16, _Backend.FP8_ATTN)
    out = layer(*inputs)
    exact = LocalAttention(3, 128, supported_attention_backends=(_Backend.TORCH_SDPA,))(*(x.float() for x in inputs))
    assert out.dtype == torch.bfloat16
    assert 1e-4 < distance(out, exact) < LARGEST_ERROR[gain]


@pytest.mark.parametrize("device", DEVICES)
def test_what_all_keys_share_costs_no_precision(device):
    layer = DistributedAttention(3, 128)
    layer.select(torch.device(device), torch.float32, _Backend.FP8_ATTN)
    plain = LocalAttention(3, 128, supported_attention_backends=(_Backend.TORCH_SDPA,))
    inputs = draw(400, 4.0, device, bias=8.0)
    assert distance(layer(*inputs), plain(*inputs)) < 2 * LARGEST_ERROR["peaky"], "0.6 if keys are rounded as they are"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_size", [48, 128])
def test_heads_come_back_within_a_sixteenth(head_size, device):
    deviations = torch.logspace(-3, 3, 2, device=device)[:, None]  # of two heads
    shared = 4 * torch.randn(2, 1, 3, 2, head_size, device=device)
    packed = (torch.randn(2, 2100, 3, 2, head_size, device=device) + shared) * deviations
    x = packed[:, :, 1]  # as attention gets it from a packed projection
    rounded = round_heads(x, None, find_centre=True)
    scales, centres = rounded.scales[:, None, :, None], rounded.centres[:, None]
    distances = (x - centres).abs()
    assert rounded.values.is_contiguous()
    assert ((rounded.values.float() * scales + centres - x).abs() <= 2**-4 * distances + 2**-9 * scales + 1e-6).all()
    # A GPU takes the mean of half of these tokens, as a rule 0.02 deviations from that of all.
    assert ((rounded.centres - x.mean(1)).abs() < 0.2 * deviations).all()


def test_it_is_taken_by_name_only_and_by_attention_over_the_video_alone():
    for layer, expected in (
        (DistributedAttention(2, 32), "Fp8AttentionBackend"),
        (LocalAttention(2, 32), "SDPABackend"),
    ):
        layer.select(CPU, torch.float32, _Backend.FP8_ATTN)
        assert type(layer.backend).__name__ == expected
    layer = DistributedAttention(2, 32)
    layer.select(CPU, torch.float32, None)
    assert type(layer.backend).__name__ == "SDPABackend"


def test_what_it_cannot_do_is_said():
    with pytest.raises(
        ValueError, match="FP8_ATTN cannot be had: it needs a head size that 16 divides, up to 256, not 40"
    ):
        DistributedAttention(2, 40).select(CPU, torch.float32, _Backend.FP8_ATTN)
    layer = DistributedAttention(4, 32)
    layer.select(CPU, torch.float32, _Backend.FP8_ATTN)
    with pytest.raises(ValueError, match="4 heads of queries share 2 of keys"):
        layer(torch.randn(1, 5, 4, 32), torch.randn(1, 5, 2, 32), torch.randn(1, 5, 2, 32))
