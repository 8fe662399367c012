"""WanTransformer3DModel against diffusers' class of the same name."""

import statistics

import diffusers
import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.dits.wan import WanTransformer3DModel, WanTransformerConfig
from fastvideo.v1.models.loader.component import load_component
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.models.loader.weights import parameter_of

TOLERANCE = 1e-4  # max|a - b| / max|b| in float32; measured here: under 1e-6


def load(model: str, precision: str = "float32") -> WanTransformer3DModel:
    return load_component(
        ModelRepository(model), "transformer", "WanTransformer3DModel", FastVideoArgs(precision=precision, device="cpu")
    )


def load_reference(model: str, dtype: torch.dtype) -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel.from_pretrained(model, subfolder="transformer", torch_dtype=dtype).eval()


def random_inputs(text_dim: int, b: int, t: int, h: int, w: int, num_text: int = 23):
    timesteps = torch.randint(0, 1000, (b,))
    return torch.randn(b, 16, t, h, w), torch.randn(b, num_text, text_dim), timesteps


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 2, 2), (1, 5, 8, 8), (2, 3, 6, 10), (3, 2, 4, 14)])
def test_forward_matches_diffusers(wan_model, max_error, b, t, h, w):
    ours, reference = load(wan_model), load_reference(wan_model, torch.float32)
    latents, text, timestep = random_inputs(reference.config.text_dim, b, t, h, w)
    expected = reference(latents, timestep, text, return_dict=False)[0]
    assert max_error(ours(latents, text, timestep), expected) < TOLERANCE


def test_bfloat16_error_is_at_most_that_of_diffusers(wan_model, rms_error):
    exact = load_reference(wan_model, torch.float32)
    models = {"ours": load(wan_model, "bfloat16"), "diffusers": load_reference(wan_model, torch.bfloat16)}
    errors: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for _ in range(8):
        latents, text, timestep = random_inputs(exact.config.text_dim, 1, 5, 8, 8)
        latents, text = latents.bfloat16(), text.bfloat16()
        expected = exact(latents.float(), timestep, text.float(), return_dict=False)[0]
        errors["ours"].append(rms_error(models["ours"](latents, text, timestep), expected))
        errors["diffusers"].append(
            rms_error(models["diffusers"](latents, timestep, text, return_dict=False)[0], expected)
        )
    assert statistics.median(errors["ours"]) <= 1.1 * statistics.median(errors["diffusers"])


def test_float32_parts_stay_float32():
    model = load(EMBEDDED_MODEL, "bfloat16")
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype is torch.float32}
    assert "blocks.0.scale_shift_table" in kept and "blocks.0.norm2.weight" in kept
    assert all("time_embedder" in name or "scale_shift_table" in name or "norm2" in name for name in kept)


@pytest.mark.parametrize(("heads", "ffn", "layers"), [(12, 8960, 30), (40, 13824, 40)], ids=["1.3B", "14B"])
def test_full_size_checkpoint_has_every_parameter_and_no_other(heads, ffn, layers):
    with torch.device("meta"):
        reference = diffusers.WanTransformer3DModel(num_attention_heads=heads, ffn_dim=ffn, num_layers=layers)
        ours = WanTransformer3DModel(WanTransformerConfig.from_dict(dict(reference.config)))
    parameters = dict(ours.named_parameters())
    places = {key: parameter_of(ours, parameters, key) for key in reference.state_dict()}
    assert None not in places.values()
    assert len(set(places.values())) == len(places)
    assert {place[0] for place in places.values() if place} == set(parameters)
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for p in reference.parameters())
