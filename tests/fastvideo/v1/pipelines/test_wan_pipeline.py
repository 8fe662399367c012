"""The whole Wan pipeline against diffusers' ``WanPipeline``, and what a pipeline promises about phases."""

import diffusers
import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline

CPU = {"device": "cpu"}
PROMPT, NEGATIVE = "a green square  rises &amp; shrinks, brown background", "gray"


def run_phases(model: str, batch: ForwardBatch, **args) -> ForwardBatch:
    """Each phase in a pipeline of its own, with only what is handed on between them."""
    for phase in Phase:
        pipeline = build_pipeline(FastVideoArgs(model_path=model, **CPU, **args), [phase])
        batch = pipeline.forward(batch)
        if phase is not Phase.DECODE:
            fields = pipeline.hands_on[phase]
            negative = [f"negative_{name}" for name in fields if "prompt" in name]
            tensors, scalars = export_sample(batch, [*fields, *negative], 0)
            batch = ForwardBatch(prompt=batch.prompt, seeds=batch.seeds, sampling=batch.sampling)
            import_sample(batch, tensors, scalars)
    return batch


@pytest.mark.parametrize(
    ("height", "width", "num_frames", "guidance"), [(64, 64, 17, 4.0), (48, 80, 5, 6.0), (32, 32, 1, 1.0)]
)
def test_frames_are_within_two_of_diffusers(wan_model, height, width, num_frames, guidance):
    seed = torch.seed() % 2**32
    reference = diffusers.WanPipeline.from_pretrained(wan_model, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    canvas = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": 8}
    expected = reference(
        PROMPT,
        NEGATIVE,
        **canvas,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        max_sequence_length=reference.tokenizer.model_max_length,
        output_type="pt",
    ).frames[0]
    generator = VideoGenerator.from_pretrained(wan_model, **CPU)
    result = generator.generate_video(PROMPT, **canvas, guidance_scale=guidance, seed=seed, negative_prompt=NEGATIVE)
    assert result.frames.dtype is torch.uint8 and result.frames.shape == (num_frames, height, width, 3)
    difference = result.frames.float() - (expected * 255).round().permute(0, 2, 3, 1)
    assert difference.abs().max() <= 2, f"seed {seed}"
    assert expected.std() > 0.002, "a flat video would agree with anything"


def test_phases_apart_make_the_same_video_as_together():
    sampling = build_pipeline(FastVideoArgs(**CPU), ()).sampling_defaults().with_overrides(num_inference_steps=3)
    batch = ForwardBatch(prompt=[PROMPT], seeds=[11], sampling=sampling)
    together = build_pipeline(FastVideoArgs(**CPU)).forward(
        ForwardBatch(prompt=[PROMPT], seeds=[11], sampling=sampling)
    )
    assert torch.equal(run_phases(EMBEDDED_MODEL, batch).frames, together.frames)


def test_bfloat16_stays_near_float32():
    kwargs = {"num_inference_steps": 4, "seed": 3, "num_frames": 5}
    exact = VideoGenerator.from_pretrained(EMBEDDED_MODEL, **CPU).generate_video(PROMPT, **kwargs)
    low = VideoGenerator.from_pretrained(
        EMBEDDED_MODEL, **CPU, precision="bfloat16", vae_precision="bfloat16", text_encoder_precision="bfloat16"
    ).generate_video(PROMPT, **kwargs)
    assert (exact.frames.float() - low.frames.float()).abs().mean() < 8


def test_a_pipeline_built_for_one_phase_loads_that_phase_only():
    pipeline = build_pipeline(FastVideoArgs(**CPU), [Phase.DENOISE])
    assert set(pipeline.modules) == {"transformer", "scheduler"}
    assert pipeline.get_module("vae") is None and pipeline.get_config("vae")["z_dim"] == 16
    assert [entry.phase for entry in pipeline.stages] == [Phase.DENOISE] * 3
    with pytest.raises(ValueError, match="declares no module 'image_encoder'"):
        pipeline.get_module("image_encoder")


def test_denoising_resumes_bit_for_bit_at_every_step():
    pipeline = build_pipeline(FastVideoArgs(**CPU), [Phase.ENCODE, Phase.DENOISE])
    sampling = pipeline.sampling_defaults().with_overrides(num_inference_steps=5)
    saved = []

    def save(batch: ForwardBatch) -> None:
        saved.append((batch.step_index, batch.latents.clone(), dict(batch.scheduler_state)))

    whole = pipeline.forward(ForwardBatch(prompt=[PROMPT], seeds=[5], sampling=sampling), ForwardContext(on_step=save))
    assert [step for step, _, _ in saved] == [1, 2, 3, 4, 5]
    for step, latents, state in saved[:-1]:
        fresh = build_pipeline(FastVideoArgs(**CPU), [Phase.ENCODE, Phase.DENOISE])
        batch = ForwardBatch(prompt=[PROMPT], seeds=[5], sampling=sampling)
        batch.step_index, batch.latents, batch.scheduler_state = step, latents, state
        assert torch.equal(fresh.forward(batch).latents, whole.latents), f"resumed after step {step}"


def test_a_flow_shift_holds_for_one_request_only():
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, **CPU)
    kwargs = {"num_inference_steps": 3, "seed": 1}
    first = generator.generate_video(PROMPT, **kwargs).frames
    shifted = generator.generate_video(PROMPT, **kwargs, flow_shift=1.0).frames
    assert not torch.equal(first, shifted)
    assert torch.equal(generator.generate_video(PROMPT, **kwargs).frames, first)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"num_frames": 16}, r"num_frames=16 must be 4k\+1 for this VAE; nearest: 13, 17"),
        ({"height": 72}, r"height=72 must be a multiple of 16 for this model; nearest: 64, 80"),
        ({"steps": 3}, r"'steps' is no sampling parameter"),
        ({"num_inference_steps": 0}, r"num_inference_steps=0 must be a whole number in \[1, 2\*\*31\)"),
        ({"seed": -1}, r"seed=-1 must lie in"),
        ({"guidance_mode": "embedded"}, r"guidance_mode='embedded' must be 'classifier_free' for this model"),
    ],
)
def test_a_bad_request_is_one_clear_line(sampling, message):
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL, **CPU)
    with pytest.raises(ValueError, match=message):
        generator.generate_video(PROMPT, **sampling)
    with pytest.raises(ValueError, match="is empty"):
        generator.generate_video("  ")
