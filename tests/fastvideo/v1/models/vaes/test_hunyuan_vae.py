"""AutoencoderKLHunyuanVideo against diffusers' class of the same name, float32 unless a test says otherwise."""

import statistics

import diffusers
import pytest
import torch

from fastvideo.v1.models.vaes.hunyuan import AutoencoderKLHunyuanVideo, HunyuanVAEConfig

TOLERANCE = 1e-4  # max|a - b| / max|b|, as asked of float32; measured here: under 1e-5


@pytest.fixture
def reference() -> diffusers.AutoencoderKLHunyuanVideo:
    model = diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4
    )
    # Fresh norms multiply by one and add nothing, which would hide a mistake in either.
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def vae(reference, load_weights) -> AutoencoderKLHunyuanVideo:
    model = AutoencoderKLHunyuanVideo(HunyuanVAEConfig.from_dict(dict(reference.config)))
    load_weights(model, reference.state_dict())
    return model


def random_video(b: int, t: int, h: int, w: int) -> torch.Tensor:
    return torch.rand(b, 3, t, h, w) * 2 - 1


def decoded(reference: diffusers.AutoencoderKLHunyuanVideo, raw: torch.Tensor) -> torch.Tensor:
    """What the reference's pipeline makes frames of: it clamps afterwards."""
    return reference.decode(raw).sample.clamp(-1.0, 1.0)


def test_full_size_parameters_are_those_of_diffusers(checkpoint_names):
    with torch.device("meta"):
        reference = diffusers.AutoencoderKLHunyuanVideo()
        ours = AutoencoderKLHunyuanVideo(HunyuanVAEConfig())
    checkpoint = reference.state_dict()
    names = checkpoint_names(ours, checkpoint)
    parameters = {name: p.shape for name, p in ours.named_parameters()}
    assert {name: (parameters[target[0]], target[1]) for name, target in names.items()} == {
        name: (p.shape, 0) for name, p in checkpoint.items()
    }
    assert {target[0] for target in names.values()} == set(parameters)


# Up to 4 latent frames are one span; 5 leave a second one that is all seam; 7 end where a stride does; 9 have three.
@pytest.mark.parametrize(
    ("b", "t", "h", "w"),
    [(1, 1, 4, 6), (2, 2, 5, 7), (1, 3, 3, 4), (1, 4, 4, 4), (1, 5, 4, 3), (2, 7, 3, 4), (1, 9, 4, 4)],
)
def test_decode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    raw = torch.randn(b, 16, t, h, w)
    assert max_error(vae.decode(vae.normalize(raw)), decoded(reference, raw)) < TOLERANCE


@pytest.mark.parametrize(
    ("b", "t", "h", "w"),
    [(1, 1, 32, 48), (2, 5, 40, 56), (1, 9, 24, 32), (1, 13, 32, 16), (1, 17, 24, 24), (2, 25, 16, 32)],
)
def test_encode_matches_diffusers(vae, reference, max_error, b, t, h, w):
    video = random_video(b, t, h, w)
    posterior = reference.encode(video).latent_dist
    mean, logvar = vae.encode_moments(video)
    assert max_error(mean, posterior.mode()) < TOLERANCE
    assert max_error(logvar, posterior.logvar) < TOLERANCE
    scaled = posterior.mode() * reference.config.scaling_factor
    assert max_error(vae.encode(video), scaled) < TOLERANCE


def test_decode_stream_yields_a_span_at_a_time_and_joins_to_decode(vae):
    latents = torch.randn(1, 16, 8, 3, 4)
    chunks = list(vae.decode_stream(latents))
    assert [chunk.shape[2] for chunk in chunks] == [13, 12, 4]
    assert torch.equal(torch.cat(chunks, dim=2).clamp(-1, 1), vae.decode(latents))


def test_decode_stream_decodes_no_span_before_it_is_asked_for(vae, monkeypatch):
    spans = []
    decode = vae.decoder.forward
    monkeypatch.setattr(vae.decoder, "forward", lambda x: spans.append(x.shape[2]) or decode(x))
    stream = vae.decode_stream(torch.randn(1, 16, 8, 3, 3))
    assert spans == []
    next(stream)
    assert spans == [5]


def test_changed_chunks_do_not_reach_later_ones(vae):
    latents = torch.randn(1, 16, 6, 3, 3)
    whole = vae.decode(latents)
    for chunk, expected in zip(vae.decode_stream(latents), whole.split([13, 8], dim=2), strict=True):
        assert torch.equal(chunk.clamp(-1, 1), expected)
        chunk.fill_(7.0)


def test_pixels_stay_within_one(vae):
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(1000)
    assert vae.decode(torch.randn(1, 16, 2, 4, 4)).abs().max() == 1.0


# A grid of tiles both ways; a last tile shorter than the overlap, in three columns; tiles within spans.
@pytest.mark.parametrize(("t", "h", "w"), [(1, 33, 40), (2, 4, 50), (6, 3, 34), (5, 40, 3)])
def test_tiled_decode_matches_diffusers(vae, reference, max_error, t, h, w):
    raw = torch.randn(1, 16, t, h, w)
    reference.enable_tiling()
    vae.use_tiling = True
    tiled = vae.decode(vae.normalize(raw))
    assert max_error(tiled, decoded(reference, raw)) < TOLERANCE
    vae.use_tiling = False
    assert not torch.equal(tiled, vae.decode(vae.normalize(raw))), "nothing was tiled"


@pytest.mark.parametrize(("t", "h", "w"), [(1, 320, 264), (5, 32, 328), (21, 16, 264)])
def test_tiled_encode_matches_diffusers(vae, reference, max_error, t, h, w):
    video = random_video(1, t, h, w)
    reference.enable_tiling()
    vae.use_tiling = True
    assert max_error(vae.encode_moments(video)[0], reference.encode(video).latent_dist.mode()) < TOLERANCE


def test_a_small_picture_is_not_tiled(vae):
    latents = torch.randn(1, 16, 2, 4, 4)
    whole = vae.decode(latents)
    vae.use_tiling = True
    assert torch.equal(vae.decode(latents), whole)


def test_bfloat16_is_as_exact_as_diffusers(vae, reference, rms_error):
    inputs = [torch.randn(1, 16, 3, 4, 4) for _ in range(8)]
    truth = [decoded(reference, raw) for raw in inputs]
    vae.bfloat16()
    reference.bfloat16()
    ours = statistics.fmean(rms_error(vae.decode(vae.normalize(raw)), x) for raw, x in zip(inputs, truth, strict=True))
    theirs = statistics.fmean(
        rms_error(decoded(reference, raw.bfloat16()), x) for raw, x in zip(inputs, truth, strict=True)
    )
    print(f"bf16 RMS error: ours {ours:.2e}, diffusers {theirs:.2e}")
    assert ours <= 1.1 * theirs


def test_bfloat16_encode_is_as_exact_as_diffusers(vae, reference, rms_error):
    inputs = [random_video(1, 9, 32, 32) for _ in range(8)]
    truth = [reference.encode(video).latent_dist.mode() for video in inputs]
    vae.bfloat16()
    reference.bfloat16()
    ours = statistics.fmean(rms_error(vae.encode_moments(x)[0], y) for x, y in zip(inputs, truth, strict=True))
    theirs = statistics.fmean(
        rms_error(reference.encode(x.bfloat16()).latent_dist.mode(), y) for x, y in zip(inputs, truth, strict=True)
    )
    print(f"bf16 RMS error: ours {ours:.2e}, diffusers {theirs:.2e}")
    assert ours <= 1.1 * theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_as_exact_as_diffusers(vae, reference, rms_error, dtype):
    raw, video = torch.randn(1, 16, 7, 6, 40), random_video(1, 17, 48, 32)
    frames, mean = decoded(reference, raw), reference.encode(video).latent_dist.mode()
    vae.to("cuda", dtype)
    reference.to("cuda", dtype)
    raw, video = raw.cuda(), video.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        for ours, theirs, truth in (
            (vae.decode(vae.normalize(raw)), decoded(reference, raw.to(dtype)), frames),
            (vae.encode_moments(video)[0], reference.encode(video.to(dtype)).latent_dist.mode(), mean),
        ):
            limit = TOLERANCE if dtype == torch.float32 else 1.1 * rms_error(theirs.cpu(), truth)
            assert rms_error(ours.cpu(), truth) < limit


def test_a_frame_count_other_than_4k_plus_1_names_the_nearest(vae):
    with pytest.raises(ValueError, match=r"num_frames=16 must be 4k\+1 .*: 13, 17"):
        vae.encode(random_video(1, 16, 16, 16))


def test_a_size_that_8_does_not_divide_is_refused(vae):
    with pytest.raises(ValueError, match="height=20, width=16 must be divisible by 8"):
        vae.encode(random_video(1, 1, 20, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=False"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8"),
        ({"block_out_channels": [8, 8]}, "2 levels, which give 2 and 4"),
    ],
)
def test_a_config_of_another_autoencoder_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HunyuanVAEConfig.from_dict(change)
