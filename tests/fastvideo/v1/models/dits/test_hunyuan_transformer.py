"""HunyuanVideoTransformer3DModel against diffusers' class of the same name."""

import statistics
from collections.abc import Iterator

import diffusers
import pytest
import torch

from fastvideo.v1.models.dits.hunyuan import HunyuanVideoTransformer3DModel, HunyuanVideoTransformerConfig
from fastvideo.v1.models.loader.component import build_model

TOLERANCE = 1e-4  # max|a - b| / max|b| in float32; measured here: under 2e-6
CONFIG = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    rope_axes_dim=(4, 6, 6),
)


def reference_model(dtype: torch.dtype = torch.float32, **config) -> diffusers.HunyuanVideoTransformer3DModel:
    """A random model whose norms and biases are not those of an untrained one."""
    model = diffusers.HunyuanVideoTransformer3DModel(**{**CONFIG, **config}).eval()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


@pytest.fixture
def ours_like(load_weights):
    def build(reference: diffusers.HunyuanVideoTransformer3DModel, dtype: torch.dtype = torch.float32):
        model = build_model(HunyuanVideoTransformer3DModel, dict(reference.config), torch.device("cpu"), dtype)
        load_weights(model, reference.state_dict())
        return model

    return build


def random_inputs(b: int, t: int, h: int, w: int, num_text: int = 11) -> dict[str, torch.Tensor]:
    return dict(
        latents=torch.randn(b, 16, t, h, w),
        text=torch.randn(b, num_text, 32),
        pooled=torch.randn(b, 16),
        timestep=torch.rand(b) * 1000,
        guidance=torch.rand(b) * 8000,
    )


def run_ours(model, latents, text, pooled, timestep, guidance) -> torch.Tensor:
    return model(latents, [text, pooled], timestep, None, guidance)


def run_reference(model, latents, text, pooled, timestep, guidance, padding: int = 0) -> torch.Tensor:
    mask = torch.ones(text.shape[:2]).long()
    if padding:
        text = torch.cat((text, torch.randn(len(text), padding, text.shape[2]).to(text)), dim=1)
        mask = torch.nn.functional.pad(mask, (0, padding))
    return model(latents, timestep, text, mask, pooled, guidance, return_dict=False)[0]


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 2, 2), (1, 5, 8, 8), (2, 3, 6, 10)])
def test_forward_matches_diffusers(ours_like, max_error, b, t, h, w):
    reference = reference_model()
    inputs = random_inputs(b, t, h, w)
    assert max_error(run_ours(ours_like(reference), **inputs), run_reference(reference, **inputs)) < TOLERANCE


def test_text_without_padding_equals_the_reference_with_masked_padding(ours_like, max_error):
    reference = reference_model()
    inputs = random_inputs(1, 3, 4, 6)
    expected = run_reference(reference, **inputs, padding=7)
    assert max_error(run_ours(ours_like(reference), **inputs), expected) < TOLERANCE


def test_a_checkpoint_without_guidance_takes_none(ours_like, max_error):
    reference = reference_model(guidance_embeds=False)
    inputs = random_inputs(1, 2, 4, 4) | {"guidance": None}
    assert max_error(run_ours(ours_like(reference), **inputs), run_reference(reference, **inputs)) < TOLERANCE


def bfloat16_errors(exact, ours, theirs, rms_error) -> Iterator[tuple[float, float]]:
    for _ in range(8):
        inputs = {name: value.bfloat16().float() for name, value in random_inputs(1, 5, 8, 8).items()}
        low = {
            name: value.bfloat16() if name in ("latents", "text", "pooled") else value for name, value in inputs.items()
        }
        expected = run_reference(exact, **inputs)
        yield rms_error(run_ours(ours, **low), expected), rms_error(run_reference(theirs, **low), expected)


def test_bfloat16_error_is_at_most_that_of_diffusers(ours_like, rms_error):
    theirs = reference_model(torch.bfloat16)
    exact = diffusers.HunyuanVideoTransformer3DModel(**CONFIG).eval()
    exact.load_state_dict(theirs.state_dict())
    errors = bfloat16_errors(exact, ours_like(theirs, torch.bfloat16), theirs, rms_error)
    ours, reference = (statistics.median(error) for error in zip(*errors, strict=True))
    assert ours <= 1.1 * reference


def test_full_size_checkpoint_has_every_parameter_and_no_other(checkpoint_names):
    with torch.device("meta"):
        reference = diffusers.HunyuanVideoTransformer3DModel()
        ours = HunyuanVideoTransformer3DModel(HunyuanVideoTransformerConfig.from_dict(dict(reference.config)))
    places = checkpoint_names(ours, reference.state_dict())
    assert None not in places.values()
    assert len(set(places.values())) == len(places)
    assert {place[0] for place in places.values() if place} == {name for name, _ in ours.named_parameters()}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
