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


FULL_SIZES = {
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {},
    "I2V 14B": {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "TI2V 5B": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}


@pytest.mark.parametrize("sizes", FULL_SIZES.values(), ids=FULL_SIZES.keys())
def test_full_size_checkpoint_has_every_parameter_and_no_other(sizes):
    with torch.device("meta"):
        reference = diffusers.WanTransformer3DModel(**sizes)
        ours = WanTransformer3DModel(WanTransformerConfig.from_dict(dict(reference.config)))
    parameters = dict(ours.named_parameters())
    places = {key: parameter_of(ours, parameters, key) for key in reference.state_dict()}
    assert None not in places.values()
    assert len(set(places.values())) == len(places)
    assert {place[0] for place in places.values() if place} == set(parameters)
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for p in reference.parameters())


class TestImageConditioning:
    """Three image tokens, of width 28."""

    @pytest.fixture
    def models(self, load_weights) -> tuple[WanTransformer3DModel, diffusers.WanTransformer3DModel]:
        reference = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=20,
            text_dim=40,
            freq_dim=24,
            ffn_dim=72,
            num_layers=2,
            in_channels=36,
            image_dim=28,
            added_kv_proj_dim=40,
        ).eval()
        for parameter in reference.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        ours = WanTransformer3DModel(WanTransformerConfig.from_dict(dict(reference.config)))
        # Published files have a weight that nothing reads.
        load_weights(ours, reference.state_dict() | {"blocks.0.attn2.norm_added_q.weight": torch.zeros(40)})
        return ours, reference

    def inputs(self, b: int):
        # The reference cuts image from text tokens by the length of Wan's texts, 512.
        latents, text, timestep = random_inputs(40, b, 3, 4, 6, num_text=512)
        return torch.cat((latents, torch.randn(b, 20, 3, 4, 6)), 1), text, timestep, torch.randn(b, 3, 28)

    @pytest.mark.parametrize("b", [1, 2])
    def test_forward_matches_diffusers(self, models, max_error, b):
        ours, reference = models
        latents, text, timestep, image = self.inputs(b)
        expected = reference(latents, timestep, text, image, return_dict=False)[0]
        assert max_error(ours(latents, text, timestep, image), expected) < TOLERANCE

    def test_bfloat16_error_is_at_most_that_of_diffusers(self, models, rms_error):
        ours, reference = models
        low = diffusers.WanTransformer3DModel.from_config(reference.config).eval()
        low.load_state_dict(reference.state_dict())
        low.to(torch.bfloat16)
        for name, parameter in low.named_parameters():
            if any(part in name for part in low._keep_in_fp32_modules):
                parameter.data = parameter.data.float()
        for name, parameter in ours.named_parameters():
            if not any(part in name.split(".") for part in ours.float32_modules):
                parameter.data = parameter.data.bfloat16()
        errors: dict[str, list[float]] = {"ours": [], "diffusers": []}
        for _ in range(32):
            latents, text, timestep, image = (x.bfloat16() if x.is_floating_point() else x for x in self.inputs(1))
            exact = reference(latents.float(), timestep, text.float(), image.float(), return_dict=False)[0]
            errors["ours"].append(rms_error(ours(latents, text, timestep, image), exact))
            errors["diffusers"].append(rms_error(low(latents, timestep, text, image, return_dict=False)[0], exact))
        assert statistics.median(errors["ours"]) <= 1.1 * statistics.median(errors["diffusers"])

    def test_an_image_is_asked_for(self, models):
        latents, text, timestep, _ = self.inputs(1)
        with pytest.raises(AssertionError, match="image_dim"):
            models[0](latents, text, timestep)


@pytest.mark.parametrize("b", [1, 2])
def test_a_timestep_for_each_frame_or_token_matches_diffusers(wan_model, max_error, b):
    ours, reference = load(wan_model), load_reference(wan_model, torch.float32)
    latents, text, _ = random_inputs(reference.config.text_dim, b, 3, 4, 6)
    of_frames = torch.randint(0, 1000, (b, 3))
    of_tokens = of_frames.repeat_interleave(2 * 3, dim=1)
    expected = reference(latents, of_tokens, text, return_dict=False)[0]
    assert max_error(ours(latents, text, of_frames), expected) < TOLERANCE
    assert max_error(ours(latents, text, of_tokens), expected) < TOLERANCE
    of_tokens = torch.rand(b, 18) * 1000
    expected = reference(latents, of_tokens, text, return_dict=False)[0]
    assert max_error(ours(latents, text, of_tokens), expected) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("runs", [3, 18], ids=["frames", "tokens"])
def test_on_a_gpu_a_timestep_for_each_run_of_tokens_gives_what_a_cpu_gives(tiny_wan, rms_error, runs):
    model = load(tiny_wan)
    latents, text, _ = random_inputs(40, 2, 3, 4, 6)
    timestep = torch.rand(2, runs) * 1000
    expected = model(latents, text, timestep)
    model.cuda()
    assert rms_error(model(latents.cuda(), text.cuda(), timestep.cuda()).cpu(), expected) < TOLERANCE
