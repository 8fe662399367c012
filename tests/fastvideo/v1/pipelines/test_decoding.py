"""What the decoding stage makes of values that are no pixels."""

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import set_forward_context
from fastvideo.v1.models.loader.component import load_component
from fastvideo.v1.models.loader.repository import ModelRepository
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import DecodingStage

CPU = FastVideoArgs(device="cpu")


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("family", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 9.0])
def test_pixels_that_are_not_finite_are_no_video(family, value, tiled, request):
    model = EMBEDDED_MODEL if family == "AutoencoderKLWan" else request.getfixturevalue("tiny_hunyuan")
    vae = load_component(ModelRepository(model), "vae", family, CPU)
    vae.use_tiling = tiled
    (bias,) = (p for name, p in vae.decoder.named_parameters() if name in ("conv_out.bias", "conv_out.conv.bias"))
    bias.data[1] = value
    batch = ForwardBatch(prompt=["p"], seeds=[1], latents=torch.randn(1, 16, 2, 3, 34 if tiled else 3))
    with torch.inference_mode(), set_forward_context():
        if value == 9.0:
            frames = DecodingStage(vae)(batch, CPU).frames
            assert (frames[..., 1] == 255).all() and not (frames[..., 0] == 255).all()
            return
        with pytest.raises(FloatingPointError, match="decoding gave NaN or infinite pixels; try vae_precision"):
            DecodingStage(vae)(batch, CPU)
