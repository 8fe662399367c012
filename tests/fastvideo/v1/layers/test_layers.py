"""Layers at size 1 against dense computations in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastvideo.v1.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from fastvideo.v1.layers.mlp import GeluMLP
from fastvideo.v1.layers.modulation import gated_residual_norm, modulated_norm, residual_modulated_norm
from fastvideo.v1.layers.norms import LayerNorm, RMSNorm
from fastvideo.v1.layers.patch_embedding import PatchEmbedding, unpatchify
from fastvideo.v1.layers.rotary import apply_rotary, rotary_tables
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.layers.weight_loading import load_parameter


def fill(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.normal_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", [ReplicatedLinear, ColumnParallelLinear, RowParallelLinear])
def test_linear_matches_dense(layer, bias):
    weight, offset, x = torch.randn(10, 6), torch.randn(10), torch.randn(2, 3, 6)
    linear = layer(6, 10, bias=bias)
    load_parameter(linear.weight, weight, 0)
    if bias:
        load_parameter(linear.bias, offset, 0)
    torch.testing.assert_close(linear(x), F.linear(x, weight, offset if bias else None))


def test_merged_linear_loads_its_parts_in_any_order():
    weights = [torch.randn(size, 6) for size in (4, 8, 2)]
    linear = MergedColumnParallelLinear(6, [4, 8, 2], bias=False)
    for part in (2, 0, 1):
        load_parameter(linear.weight, weights[part], part)
    x = torch.randn(3, 6)
    torch.testing.assert_close(linear(x), torch.cat([x @ weight.T for weight in weights], dim=-1))


@pytest.mark.parametrize("layer", [ReplicatedLinear, ColumnParallelLinear, RowParallelLinear])
@pytest.mark.parametrize("shape", [[1, 6], [10, 7]])
def test_a_weight_of_another_shape_is_refused(layer, shape):
    with pytest.raises(ValueError, match=rf"shape \{shape} in the checkpoint, \[10, 6] in the model"):
        load_parameter(layer(6, 10).weight, torch.zeros(shape), 0)


def test_vocab_parallel_embedding_matches_rows():
    rows, ids = torch.randn(11, 4), torch.randint(0, 11, (2, 5))
    embedding = VocabParallelEmbedding(num_embeddings=11, embedding_dim=4)
    load_parameter(embedding.weight, rows, 0)
    assert torch.equal(embedding(ids), rows[ids])
    for shape in ([10, 4], [12, 4], [11, 1]):
        with pytest.raises(ValueError, match=rf"shape \{shape} in the checkpoint, \[11, 4] in the model"):
            load_parameter(embedding.weight, torch.zeros(shape), 0)


def test_norms_match_float64_and_return_the_input_dtype():
    x = torch.randn(2, 7, 12).mul_(3).add_(1)
    layer, rms = LayerNorm(12), RMSNorm(12)
    fill(layer)
    fill(rms)
    exact = F.layer_norm(x.double(), (12,), layer.weight.double(), layer.bias.double(), layer.eps)
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)
    exact = F.rms_norm(x.double(), (12,), rms.weight.double(), rms.eps)
    torch.testing.assert_close(rms(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert layer(x.bfloat16()).dtype is rms(x.bfloat16()).dtype is torch.bfloat16


def test_modulation_matches_its_formula_in_float64():
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    shift, scale, gate = torch.randn(3, 2, 1, 8).unbind()
    norm = LayerNorm(8)
    fill(norm)

    def modulated(value):
        return F.layer_norm(value, (8,), eps=1e-6) * (1 + scale.double()) + shift.double()

    torch.testing.assert_close(
        modulated_norm(x, shift, scale, 1e-6).double(), modulated(x.double()), rtol=1e-4, atol=1e-5
    )
    total, out = residual_modulated_norm(x, y, shift, scale, 1e-6)
    torch.testing.assert_close(total, x + y)
    torch.testing.assert_close(out.double(), modulated(x.double() + y.double()), rtol=1e-4, atol=1e-5)
    total, out = gated_residual_norm(x, y, gate, norm)
    torch.testing.assert_close(total, x + y * gate)
    torch.testing.assert_close(out, norm(x + y * gate))


def test_rotary_turns_pairs_by_the_angle_of_their_position():
    tables = rotary_tables((2, 3, 4), (4, 2, 2), 10_000.0, torch.device("cpu"))
    x = torch.randn(1, 24, 2, 8)
    out = torch.view_as_complex(apply_rotary(x, tables).unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    t, h, w = torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij")
    angles = torch.stack([t, t / 100, h, w], dim=-1).reshape(24, 1, 4)
    torch.testing.assert_close(out[0], turned[0] * torch.exp(1j * angles), rtol=1e-5, atol=1e-5)


def test_patch_embedding_is_the_strided_convolution_and_unpatchify_its_inverse_order():
    patch, latents = (1, 2, 2), torch.randn(2, 3, 2, 4, 6)
    embedding = PatchEmbedding(3, 10, patch)
    fill(embedding)
    expected = F.conv3d(latents, embedding.weight, embedding.bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(latents), expected, rtol=1e-5, atol=1e-5)
    tokens = latents.unfold(3, 2, 2).unfold(4, 2, 2)  # b c t h w ph pw
    tokens = tokens.permute(0, 2, 3, 4, 5, 6, 1).flatten(4).flatten(1, 3)
    assert torch.equal(unpatchify(tokens, (2, 2, 3), patch), latents)


def test_mlp_is_two_linears_with_the_tanh_gelu_between():
    mlp, x = GeluMLP(6, 20), torch.randn(2, 4, 6)
    fill(mlp)
    hidden = F.gelu(F.linear(x, mlp.up.weight, mlp.up.bias), approximate="tanh")
    torch.testing.assert_close(mlp(x), F.linear(hidden, mlp.down.weight, mlp.down.bias))
