"""8-bit matrix products against the exact ones, at the error that three bits of mantissa leave."""

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.layers.linear import ColumnParallelLinear, MergedRowParallelLinear
from fastvideo.v1.layers.mlp import GeluMLP
from fastvideo.v1.layers.quantization import quantize_rows
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.component import load_component
from fastvideo.v1.models.loader.repository import ModelRepository

# A value of three bits of mantissa is off by up to 2^-4 of it, 2.6% in RMS; a product has two such factors.
PRODUCT_ERROR = 0.04


def filled(layer: torch.nn.Module) -> torch.nn.Module:
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer


def distance(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


def test_rows_keep_three_bits_of_mantissa_whatever_their_size():
    x = torch.randn(7, 96) * torch.logspace(-6, 6, 7)[:, None]
    rows = quantize_rows(x)
    values = rows.values.float() * rows.scales
    assert ((values - x).abs() <= 2**-4 * x.abs() + 2**-9 * rows.scales).all()
    assert torch.equal(quantize_rows(torch.zeros(2, 16)).values.float(), torch.zeros(2, 16))


@pytest.mark.parametrize(
    ("layer", "widths", "num_products"),
    [
        (ColumnParallelLinear(96, 80), [96], 1),
        (MergedRowParallelLinear([48, 64], 80), [48, 64], 1),
        (GeluMLP(64, 96), [64], 2),
    ],
    ids=["column", "row with two inputs", "mlp"],
)
def test_a_quantized_layer_stays_near_the_exact_one(layer, widths, num_products):
    inputs = [torch.randn(2, 30, width) for width in widths]
    exact = filled(layer)(*inputs)
    for module in [layer, *layer.children()]:
        if hasattr(module, "quantize"):
            module.quantize()
    assert 0 < distance(layer(*inputs), exact) < PRODUCT_ERROR * num_products**0.5


def test_the_embedded_model_in_eight_bits_stays_near_itself():
    def load(**args) -> Model:
        arguments = FastVideoArgs(device="cpu", **args)
        return load_component(ModelRepository(EMBEDDED_MODEL), "transformer", "WanTransformer3DModel", arguments)

    exact, quantized = load(), load(quantization="fp8")
    latents, text = torch.randn(1, 16, 5, 8, 8), torch.randn(1, 23, exact.config.text_dim)
    with torch.inference_mode():
        out, expected = (model(latents, text, torch.tensor([637])) for model in (quantized, exact))
    assert 0 < distance(out, expected) < 0.1


def test_a_model_without_an_eight_bit_form_says_so():
    with pytest.raises(ValueError, match="Model has no 8-bit form"):
        Model(None).quantize()
