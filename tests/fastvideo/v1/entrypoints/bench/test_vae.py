"""The VAEs at full width: ours decodes what diffusers' does, on a canvas small enough for a CPU."""

import pytest

from fastvideo.v1.entrypoints.bench.vae import bench_vae


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wan", "hunyuan"])
def test_both_decode_the_same_video(model):
    figures = bench_vae(model, 32, 32, 5, ["diffusers+float32", "ours+float32"], rounds=1)
    theirs, ours = figures["rows"]
    assert theirs["error"] == 0 and 0 < ours["error"] < 1e-4
    assert ours["seconds"] > 0


def test_an_unknown_vae_is_named():
    with pytest.raises(ValueError, match="no VAE 'wan3'; there are: wan, hunyuan"):
        bench_vae("wan3", 32, 48, 5, ["ours"], rounds=1)
