"""The whole HunyuanVideo pipeline against diffusers' ``HunyuanVideoPipeline``."""

import diffusers
import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline

CPU = {"device": "cpu"}
PROMPT = "a tree in the wind"


@pytest.mark.parametrize(("height", "width", "num_frames"), [(48, 80, 9), (32, 32, 1)])
def test_frames_are_within_two_of_diffusers(tiny_hunyuan, height, width, num_frames):
    seed = torch.seed() % 2**32
    reference = diffusers.HunyuanVideoPipeline.from_pretrained(tiny_hunyuan, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    request = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "num_inference_steps": 5,
        "guidance_scale": 4.5,
    }
    expected = reference(
        PROMPT, **request, generator=torch.Generator("cpu").manual_seed(seed), output_type="pt"
    ).frames[0]
    result = VideoGenerator.from_pretrained(tiny_hunyuan, **CPU).generate_video(PROMPT, **request, seed=seed)
    assert result.frames.shape == (num_frames, height, width, 3)
    difference = result.frames.float() - (expected * 255).round().permute(0, 2, 3, 1)
    assert difference.abs().max() <= 2, f"seed {seed}"
    assert expected.std() > 0.002, "a flat video would agree with anything"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_transformer_sees_the_guidance_that_diffusers_shows_it(tiny_hunyuan, precision):
    request = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1, "guidance_scale": 6.0}
    reference = diffusers.HunyuanVideoPipeline.from_pretrained(tiny_hunyuan, torch_dtype=getattr(torch, precision))
    reference.set_progress_bar_config(disable=True)
    pipeline = build_pipeline(FastVideoArgs(model_path=tiny_hunyuan, precision=precision, **CPU))
    seen = []
    for model in (reference.transformer, pipeline.get_module("transformer")):
        model.time_text_embed.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    reference(PROMPT, **request, output_type="latent")
    sampling = pipeline.sampling_defaults().with_overrides(**request)
    pipeline.forward(ForwardBatch(prompt=[PROMPT], seeds=[0], sampling=sampling))
    theirs, ours = seen
    assert theirs.item() == ours.item()


def test_guidance_is_an_input_and_needs_no_negative_prompt(tiny_hunyuan):
    sampling = build_pipeline(FastVideoArgs(model_path=tiny_hunyuan, **CPU), ()).sampling_defaults()
    assert sampling.guidance_scale == 6.0 and not sampling.is_guided
    generator = VideoGenerator.from_pretrained(tiny_hunyuan, **CPU)
    request = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 2, "seed": 4}
    weak, strong = (generator.generate_video(PROMPT, **request, guidance_scale=scale).frames for scale in (1.0, 12.0))
    assert not torch.equal(weak, strong)


def test_what_the_model_cannot_make_is_refused_with_what_it_can(tiny_hunyuan):
    generator = VideoGenerator.from_pretrained(tiny_hunyuan, **CPU)
    with pytest.raises(ValueError, match="guidance_mode='classifier_free' must be 'embedded' for this model"):
        generator.generate_video(PROMPT, height=48, width=64, num_frames=5, guidance_mode="classifier_free")
    with pytest.raises(ValueError, match="height=56 must be a multiple of 16 for this model; nearest: 48, 64"):
        generator.generate_video(PROMPT, height=56, width=64, num_frames=5)
