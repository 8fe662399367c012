"""AutoencoderKLWan against diffusers' class of the same name, float32 unless a test says otherwise."""

import json
import statistics
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.models.vaes.wan import AutoencoderKLWan, WanVAEConfig

TOLERANCE = 1e-4  # max|a - b| / max|b|, as asked of float32; measured here: under 1e-5
EMBEDDED_VAE = Path(EMBEDDED_MODEL, "vae")


@pytest.fixture(scope="module", params=["random", "embedded"])
def config(request) -> dict:
    if request.param == "embedded":
        return json.loads((EMBEDDED_VAE / "config.json").read_text())
    mean, std = torch.randn(16).tolist(), (torch.rand(16) + 0.5).tolist()
    return dict(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1, latents_mean=mean, latents_std=std).config)


@pytest.fixture
def reference(config) -> diffusers.AutoencoderKLWan:
    model = diffusers.AutoencoderKLWan.from_config(config).eval()
    if config["base_dim"] == 16:
        model.load_state_dict(load_file(EMBEDDED_VAE / "diffusion_pytorch_model.safetensors"))
    return model


@pytest.fixture
def vae(config, reference, load_weights) -> AutoencoderKLWan:
    model = AutoencoderKLWan(WanVAEConfig.from_dict(config))
    load_weights(model, reference.state_dict())
    return model


def random_video(b: int, t: int, h: int, w: int) -> torch.Tensor:
    return torch.rand(b, 3, t, h, w) * 2 - 1


def test_full_size_parameters_are_those_of_diffusers():
    with torch.device("meta"):
        reference = diffusers.AutoencoderKLWan()
        ours = AutoencoderKLWan(WanVAEConfig.from_dict(dict(reference.config)))
    assert {name: p.shape for name, p in ours.state_dict().items()} == {
        name: p.shape for name, p in reference.state_dict().items()
    }


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 4, 6), (2, 2, 5, 7), (1, 3, 3, 4), (1, 5, 8, 8)])
def test_decode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    raw = torch.randn(b, 16, t, h, w)
    assert max_error(vae.decode(vae.normalize(raw)), reference.decode(raw).sample) < TOLERANCE


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 32, 48), (2, 5, 40, 56), (1, 9, 24, 32), (1, 17, 64, 64)])
def test_encode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    video = random_video(b, t, h, w)
    posterior = reference.encode(video).latent_dist
    mean, logvar = vae.encode_moments(video)
    assert max_error(mean, posterior.mode()) < TOLERANCE
    assert max_error(logvar, posterior.logvar) < TOLERANCE
    assert max_error(vae.denormalize(vae.encode(video)), posterior.mode()) < TOLERANCE


def test_latents_are_normalised_per_channel(vae, config):
    raw = torch.randn(1, 16, 1, 2, 2)
    mean, std = (torch.tensor(config[key]).view(1, 16, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(vae.normalize(raw), (raw - mean) / std)
    torch.testing.assert_close(vae.denormalize(vae.normalize(raw)), raw)


def test_decode_stream_yields_one_frame_then_four_and_joins_to_decode(vae):
    latents = torch.randn(1, 16, 3, 4, 4)
    chunks = list(vae.decode_stream(latents))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=2).clamp(-1, 1), vae.decode(latents))


def test_a_frame_is_decoded_from_no_later_one(vae):
    latents = torch.randn(1, 16, 3, 4, 4)
    torch.testing.assert_close(vae.decode(latents)[:, :, :5], vae.decode(latents[:, :, :2]))


def test_pixels_stay_within_one(vae):
    video = vae.decode(100 * torch.randn(1, 16, 2, 4, 4))
    assert video.abs().max() == 1.0


# A grid of tiles both ways; a last tile shorter than the overlap, in three columns; a picture one tile high, in time.
@pytest.mark.parametrize("config", ["random"], indirect=True)
@pytest.mark.parametrize(("t", "h", "w"), [(1, 33, 40), (1, 4, 50), (2, 6, 34)])
def test_tiled_decode_matches_diffusers(vae, reference, max_error, t, h, w):
    raw = torch.randn(1, 16, t, h, w)
    reference.enable_tiling()
    vae.use_tiling = True
    tiled = vae.decode(vae.normalize(raw))
    assert max_error(tiled, reference.decode(raw).sample) < TOLERANCE
    vae.use_tiling = False
    assert not torch.equal(tiled, vae.decode(vae.normalize(raw))), "nothing was tiled"


@pytest.mark.parametrize("config", ["random"], indirect=True)
def test_tiled_encode_matches_diffusers(vae, reference, max_error):
    video = random_video(1, 5, 32, 328)
    reference.enable_tiling()
    vae.use_tiling = True
    assert max_error(vae.encode_moments(video)[0], reference.encode(video).latent_dist.mode()) < TOLERANCE


def test_a_small_picture_is_not_tiled(vae):
    latents = torch.randn(1, 16, 2, 4, 4)
    whole = vae.decode(latents)
    vae.use_tiling = True
    assert torch.equal(vae.decode(latents), whole)


def test_bfloat16_decode_is_as_exact_as_diffusers(vae, reference, rms_error):
    inputs = [torch.randn(1, 16, 2, 4, 4) for _ in range(8)]
    truth = [reference.decode(raw).sample for raw in inputs]
    vae.bfloat16()
    reference.bfloat16()
    ours = statistics.median(rms_error(vae.decode(vae.normalize(raw)), x) for raw, x in zip(inputs, truth, strict=True))
    theirs = statistics.median(
        rms_error(reference.decode(raw.bfloat16()).sample, x) for raw, x in zip(inputs, truth, strict=True)
    )
    print(f"bf16 RMS error: ours {ours:.2e}, diffusers {theirs:.2e}")
    assert ours <= 1.1 * theirs


def test_a_frame_count_other_than_4k_plus_1_names_the_nearest(vae):
    with pytest.raises(ValueError, match=r"num_frames=16 must be 4k\+1 .*: 13, 17"):
        vae.encode(random_video(1, 16, 16, 16))


def test_a_size_that_8_does_not_divide_is_refused(vae):
    with pytest.raises(ValueError, match="height=20, width=16 must be divisible by 8"):
        vae.encode(random_video(1, 1, 20, 16))
