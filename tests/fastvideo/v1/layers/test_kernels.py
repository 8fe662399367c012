"""The Triton kernels against the same formula in float64, on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from fastvideo.v1.layers.modulation import (
    gated_residual,
    gated_residual_norm,
    modulated_norm,
    residual_modulated_norm,
)
from fastvideo.v1.layers.norms import LayerNorm, RMSNorm
from fastvideo.v1.layers.qk_norm import HeadQKNorm, QKNormRotary, join_streams
from fastvideo.v1.layers.quantization import quantize_rows, quantized_linear
from fastvideo.v1.layers.rotary import apply_rotary, rotary_tables
from fastvideo.v1.models.vaes import hunyuan
from fastvideo.v1.models.vaes.causal_conv import CausalConv3d, FrameCache
from fastvideo.v1.models.vaes.channels_last import add_bias_residual
from fastvideo.v1.models.vaes.wan_blocks import ChannelRMSNorm, norm_silu_conv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Rounding to bfloat16 once moves no number by more than 2^-9 of it; a kernel that rounds twice exceeds that in RMS.
ONE_ROUNDING = 2**-9
WIDTHS = [(1, 37, 1536), (2, 64, 5120), (3, 5, 192)]


def distance(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


@pytest.mark.parametrize(("b", "s", "d"), WIDTHS)
def test_modulation_kernels(b, s, d):
    x, y = random(b, s, d) * 3 + 1, random(b, s, d)
    shift, scale, gate = random(b, 1, 3, d, dtype=torch.float32).unbind(-2)
    norm = LayerNorm(d).cuda()
    norm.weight.data.normal_()
    norm.bias.data.normal_()

    def modulated(value):
        return F.layer_norm(value.double(), (d,), eps=1e-6) * (1 + scale.double()) + shift.double()

    assert distance(modulated_norm(x, shift, scale, 1e-6), modulated(x)) < ONE_ROUNDING
    assert distance(gated_residual(x, y, gate), x.double() + y.double() * gate.double()) < ONE_ROUNDING
    total, out = residual_modulated_norm(x, y, shift, scale, 1e-6)
    assert distance(total, x.double() + y.double()) < ONE_ROUNDING
    assert distance(out, modulated(total)) < ONE_ROUNDING
    total, out = gated_residual_norm(x, y, gate, norm)
    exact = F.layer_norm(total.double(), (d,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert distance(total, x.double() + y.double() * gate.double()) < ONE_ROUNDING
    assert distance(out, exact) < ONE_ROUNDING


@pytest.mark.parametrize(("b", "grid", "heads", "head_size"), [(1, (3, 5, 7), 12, 128), (2, (1, 4, 4), 3, 64)])
def test_norm_and_rotation_of_queries_and_keys(b, grid, heads, head_size):
    width, tokens = heads * head_size, grid[0] * grid[1] * grid[2]
    side = 2 * (head_size // 6)
    tables = rotary_tables(grid, (head_size - 2 * side, side, side), 1e4, torch.device("cuda", 0))
    layer = QKNormRotary(width, head_size, 1e-6).cuda().bfloat16()
    layer.weight.data.normal_(1, 0.3)
    qkv = random(b, tokens, 3 * width)
    query, key, value = layer(qkv, tables)
    assert torch.equal(value.flatten(-2), qkv[..., 2 * width :])
    for part, out in enumerate((query, key)):
        x = qkv[..., part * width : (part + 1) * width].double()
        exact = F.rms_norm(x, (width,), layer.weight[part].double(), 1e-6).unflatten(-1, (-1, head_size))
        cos, sin = (table.double()[:, None] for table in tables)
        even, odd = exact.unflatten(-1, (-1, 2)).unbind(-1)
        exact = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        assert distance(out, exact) < ONE_ROUNDING


@pytest.mark.parametrize(("b", "heads", "head_size"), [(1, 24, 128), (2, 3, 64)])
@pytest.mark.parametrize("num_text", [0, 5])
def test_norm_over_heads_and_rotation_of_joined_streams(b, heads, head_size, num_text):
    grid = (3, 5, 7)
    tables = rotary_tables(grid, (head_size // 2, head_size // 4, head_size // 4), 256.0, torch.device("cuda", 0))
    streams = []
    for tokens, rotary in ((grid[0] * grid[1] * grid[2] + 2, tables), (num_text, None)):
        norm = HeadQKNorm(head_size, 1e-6).cuda().bfloat16()
        norm.weight.data.normal_(1, 0.3)
        streams += [(random(b, tokens, 3 * heads * head_size), norm, rotary)] if tokens else []
    exact = join_streams([(qkv.double().cpu(), norm.double().cpu(), _on_cpu(rotary)) for qkv, norm, rotary in streams])
    ours = join_streams([(qkv, norm.cuda().bfloat16(), rotary) for qkv, norm, rotary in streams])
    for out, expected in zip(ours, exact, strict=True):
        assert distance(out, expected.cuda()) < ONE_ROUNDING


def _on_cpu(tables):
    return None if tables is None else tuple(table.cpu() for table in tables)


def test_rms_norm_reads_a_strided_half():
    layer, packed = RMSNorm(320).cuda().bfloat16(), random(2, 9, 640)
    layer.weight.data.normal_(1, 0.3)
    x = packed[..., :320]
    assert distance(layer(x), F.rms_norm(x.double(), (320,), layer.weight.double(), layer.eps)) < ONE_ROUNDING


@pytest.mark.parametrize("b", [1, 2])
def test_norm_activation_and_bias_between_causal_convolutions(b):
    norm, conv = ChannelRMSNorm(96).cuda(), CausalConv3d(96, 32).cuda()
    norm.gamma.data.normal_(1, 0.2)
    bias, cache = random(96, dtype=torch.float32), FrameCache()
    x = random(b, 4, 6, 10, 96, dtype=torch.float32).movedim(-1, 1)
    with torch.inference_mode():
        out = norm_silu_conv(x, bias, norm, conv, cache).double()
        shifted = x.double() + bias.double().view(-1, 1, 1, 1)
        active = F.silu(
            F.rms_norm(shifted.movedim(1, -1), (96,), norm.gamma.flatten().double(), norm.EPS).movedim(-1, 1)
        )
        exact = F.conv3d(F.pad(active, (1, 1, 1, 1, 2, 0)), conv.weight.double())
        assert distance(out, exact) < 1e-3, "TF32 convolution"
        total = add_bias_residual(out.float().contiguous(memory_format=torch.channels_last_3d), conv.bias, out.float())
        assert distance(total, 2 * out.float().double() + conv.bias.double().view(-1, 1, 1, 1)) < 1e-6


# Fewer rows than a block of moments holds, several blocks with a short last one, channels that are no power of two.
@pytest.mark.parametrize(("b", "c", "t", "h", "w"), [(2, 96, 1, 5, 6), (1, 128, 3, 40, 50), (1, 512, 5, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_silu_replicate(b, c, t, h, w, dtype):
    from fastvideo.v1.layers.kernels import group_norm

    # A mean far from zero is where sums of squares lose their digits.
    x = (random(b, c, t, h, w, dtype=dtype) * 2 + 9).contiguous(memory_format=torch.channels_last_3d)
    norm, bias = hunyuan.GroupNorm(32, c).cuda().to(dtype), random(c, dtype=dtype)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    affine = group_norm.group_affine(x, bias, norm.weight, norm.bias, norm.num_groups, norm.eps)
    out = group_norm.replicate(x, (1, 1, 1), affine)
    shifted = (x.double() + bias.double().view(-1, 1, 1, 1)).contiguous()
    active = F.silu(F.group_norm(shifted, 32, norm.weight.double(), norm.bias.double(), norm.eps))
    exact = F.pad(active, (1, 1, 1, 1, 2, 0), mode="replicate")
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert distance(out, exact) < (1e-5 if dtype == torch.float32 else ONE_ROUNDING)


@pytest.mark.parametrize("scale", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)])
def test_replicate_is_the_same_as_on_the_cpu(scale):
    from fastvideo.v1.layers.kernels import group_norm

    x = random(2, 24, 3, 5, 7).contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(group_norm.replicate(x, scale, None).cpu(), hunyuan.replicate(x.cpu(), scale))


def test_rotation_is_the_same_as_the_plain_function():
    tables = rotary_tables((2, 3, 4), (24, 20, 20), 1e4, torch.device("cuda", 0))
    x = random(1, 24, 3, 64, dtype=torch.float32)
    cpu = apply_rotary(x.cpu(), tuple(table.cpu() for table in tables))
    torch.testing.assert_close(apply_rotary(x, tables).cpu(), cpu, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [1536, 8960, 144])
def test_rows_in_eight_bits_and_their_product(gelu, width):
    x, weight, bias = random(3, 50, width), random(1536, width), random(1536)
    rows = quantize_rows(x, gelu)
    source = F.gelu(x.double(), approximate="tanh") if gelu else x.double()
    values = rows.values.double() * rows.scales.double()
    assert ((values - source).abs() <= 2**-4 * source.abs() + rows.scales.double() * 2**-9).all(), "3 bits of mantissa"
    parts = quantize_rows(weight)
    exact = F.linear(values, parts.values.double() * parts.scales.double(), bias.double())
    assert distance(quantized_linear(rows, parts, bias), exact) < 2 * ONE_ROUNDING
