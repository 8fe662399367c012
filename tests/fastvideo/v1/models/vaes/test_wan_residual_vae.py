"""Wan 2.2's AutoencoderKLWan (``is_residual``, patches of 2) against diffusers' class of the same name, in float32."""

import diffusers
import pytest
import torch

from fastvideo.v1.models.vaes.wan import AutoencoderKLWan, WanVAEConfig
from fastvideo.v1.models.vaes.wan_residual import average_down, duplicate_up, patchify, unpatchify

TOLERANCE = 1e-4  # max|a - b| / max|b|, as asked of float32; measured here: under 1e-5
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
WAN_22 = {
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.1 * i for i in range(48)],
    "latents_std": [1 + 0.1 * i for i in range(48)],
}


@pytest.fixture
def reference() -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(base_dim=8, decoder_base_dim=16, num_res_blocks=1, **WAN_22).eval()


@pytest.fixture
def vae(reference, load_weights) -> AutoencoderKLWan:
    model = AutoencoderKLWan(WanVAEConfig.from_dict(dict(reference.config)))
    load_weights(model, reference.state_dict())
    return model


def test_full_size_parameters_are_those_of_diffusers():
    with torch.device("meta"):
        reference = diffusers.AutoencoderKLWan(base_dim=160, decoder_base_dim=256, **WAN_22)
        ours = AutoencoderKLWan(WanVAEConfig.from_dict(dict(reference.config)))
    assert {name: p.shape for name, p in ours.state_dict().items()} == {
        name: p.shape for name, p in reference.state_dict().items()
    }


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 2, 3), (2, 2, 3, 2), (1, 4, 2, 2)])
def test_decode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    raw = torch.randn(b, 48, t, h, w)
    assert max_error(vae.decode(vae.normalize(raw)), reference.decode(raw).sample) < TOLERANCE


@pytest.mark.parametrize(("b", "t", "h", "w"), [(1, 1, 32, 48), (2, 5, 48, 32), (1, 13, 32, 32)])
def test_encode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    video = torch.rand(b, 3, t, h, w) * 2 - 1
    posterior = reference.encode(video).latent_dist
    mean, logvar = vae.encode_moments(video)
    assert max_error(mean, posterior.mode()) < TOLERANCE
    assert max_error(logvar, posterior.logvar) < TOLERANCE


# Float32 on a GPU is held to the same limit as on a CPU; bfloat16 to the reference's own error, over so many inputs
# that chance moves the quotient of the two by 2%.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_as_exact_as_diffusers(vae, reference, rms_error, device, dtype):
    raw, video = torch.randn(24, 48, 2, 2, 2), torch.rand(12, 3, 5, 48, 48) * 2 - 1
    frames, mean = reference.decode(raw).sample, reference.encode(video).latent_dist.mode()
    vae.to(device, dtype)
    reference.to(device, dtype)
    raw, video = raw.to(device), video.to(device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        for ours, theirs, truth in (
            (vae.decode(vae.normalize(raw)), reference.decode(raw.to(dtype)).sample, frames),
            (vae.encode_moments(video)[0], reference.encode(video.to(dtype)).latent_dist.mode(), mean),
        ):
            limit = TOLERANCE if dtype == torch.float32 else 1.1 * rms_error(theirs.cpu(), truth)
            assert rms_error(ours.cpu(), truth) <= limit


def test_decode_stream_yields_one_frame_then_four_and_joins_to_decode(vae):
    latents = torch.randn(1, 48, 3, 2, 2)
    chunks = list(vae.decode_stream(latents))
    assert [chunk.shape for chunk in chunks] == [(1, 3, frames, 32, 32) for frames in (1, 4, 4)]
    assert torch.equal(torch.cat(chunks, dim=2).clamp(-1, 1), vae.decode(latents))


def test_tiled_decode_matches_diffusers(vae, reference, max_error):
    raw = torch.randn(1, 48, 2, 3, 19)
    reference.enable_tiling()
    vae.use_tiling = True
    assert max_error(vae.decode(vae.normalize(raw)), reference.decode(raw).sample) < TOLERANCE


# Of 208 patches a side are two tiles, though they would fit in one; of 192 one; and of 128 none.
@pytest.mark.parametrize(("h", "w"), [(32, 416), (416, 32), (32, 384), (32, 256)])
def test_tiled_encode_matches_diffusers(vae, reference, max_error, h, w):
    video = torch.rand(1, 3, 1, h, w) * 2 - 1
    whole = reference.encode(video).latent_dist.mode()
    reference.enable_tiling()
    vae.use_tiling = True
    expected = reference.encode(video).latent_dist.mode()
    assert max_error(vae.encode_moments(video)[0], expected) < TOLERANCE
    assert torch.equal(expected, whole) == (max(h, w) <= 384), "the sizes are on both sides of where tiles begin"


@pytest.mark.parametrize(("channels", "out", "temporal"), [(4, 4, 2), (4, 8, 2), (4, 8, 1), (6, 6, 1)])
def test_averaging_undoes_duplicating(channels, out, temporal):
    x = torch.randn(2, out, 3, 4, 5)
    wide = duplicate_up(x, channels, temporal, 2, first_chunk=False)
    assert wide.shape == (2, channels, 3 * temporal, 8, 10)
    torch.testing.assert_close(average_down(wide, out, temporal, 2), x)


def test_patches_are_those_of_diffusers():
    from diffusers.models.autoencoders import autoencoder_kl_wan

    video = torch.randn(2, 3, 3, 4, 6)
    assert torch.equal(patchify(video, 2), autoencoder_kl_wan.patchify(video, 2))
    assert torch.equal(unpatchify(patchify(video, 2), 2), video)
    assert unpatchify(video, 1).data_ptr() == video.data_ptr(), "without patches nothing is copied"


def test_a_size_that_16_does_not_divide_is_refused(vae):
    with pytest.raises(ValueError, match="height=40, width=32 must be divisible by 16"):
        vae.encode(torch.zeros(1, 3, 1, 40, 32))
