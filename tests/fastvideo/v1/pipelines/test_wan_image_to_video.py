"""Wan2.1 I2V, Wan2.2 I2V A14B and Wan2.2 TI2V against diffusers' ``WanImageToVideoPipeline`` and ``WanPipeline``."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.config import parse_config
from fastvideo.v1.dataset.layout import latents_path
from fastvideo.v1.dataset.objects.state_file import unpack_state
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.describe import describe_pipeline
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline
from fastvideo.v1.pipelines.stages.image_encoding import ImageEncodingStage, ImageLatentStage, to_canvas
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.stage_job import run_stage_job
from tests.wan_variants import update_json

PROMPT, NEGATIVE = "a red circle and a white star", "gray"
CANVAS = {"height": 32, "width": 64, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 3.0}


@pytest.fixture
def image() -> torch.Tensor:
    """Blobs of colour, of another size and shape than the video."""
    small = torch.randint(0, 256, (3, 5, 3), dtype=torch.uint8)
    return small.repeat_interleave(17, 0).repeat_interleave(13, 1)


def expected_frames(reference, seed: int, **inputs) -> torch.Tensor:
    reference.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    return reference(
        prompt=PROMPT, negative_prompt=NEGATIVE, **CANVAS, **inputs, generator=generator, output_type="pt"
    ).frames[0]


def batch_for(pipeline, seed: int, image: torch.Tensor | None = None) -> ForwardBatch:
    sampling = pipeline.sampling_defaults().with_overrides(**CANVAS)
    return ForwardBatch(
        prompt=[PROMPT],
        negative_prompt=[NEGATIVE],
        seeds=[seed],
        image=None if image is None else [image],
        sampling=sampling,
    )


def test_wan21_matches_diffusers(wan21_i2v, image, assert_within_two):
    seed = torch.seed() % 2**32
    reference = diffusers.WanImageToVideoPipeline.from_pretrained(wan21_i2v, torch_dtype=torch.float32)
    expected = expected_frames(reference, seed, image=Image.fromarray(image.numpy()))
    pipeline = build_pipeline(FastVideoArgs(model_path=wan21_i2v, device="cpu"))
    assert_within_two(pipeline.forward(batch_for(pipeline, seed, image)).frames[0], expected)


def test_wan22_experts_without_an_image_encoder_match_diffusers(wan22_i2v, image, assert_within_two):
    seed = torch.seed() % 2**32
    reference = diffusers.WanImageToVideoPipeline.from_pretrained(wan22_i2v, torch_dtype=torch.float32)
    expected = expected_frames(reference, seed, image=Image.fromarray(image.numpy()))
    pipeline = build_pipeline(FastVideoArgs(model_path=wan22_i2v, device="cpu"))
    assert "image_encoder" not in pipeline.modules
    assert_within_two(pipeline.forward(batch_for(pipeline, seed, image)).frames[0], expected)


def test_a_model_of_first_and_last_frame_is_refused_when_planning(wan21_i2v, tmp_path):
    model = Path(shutil.copytree(wan21_i2v, tmp_path / "model"))
    update_json(model / "transformer/config.json", pos_embed_seq_len=514)
    with pytest.raises(ValueError, match=r"pos_embed_seq_len=514: a model of first and last frame is not supported"):
        describe_pipeline(str(model))


@pytest.mark.parametrize("with_image", [True, False], ids=["image", "text alone"])
def test_wan22_ti2v_matches_diffusers(wan22_ti2v, image, assert_within_two, with_image):
    seed = torch.seed() % 2**32
    kind = diffusers.WanImageToVideoPipeline if with_image else diffusers.WanPipeline
    reference = kind.from_pretrained(
        wan22_ti2v, torch_dtype=torch.float32, **{"image_encoder": None, "image_processor": None} if with_image else {}
    )
    inputs = {"image": Image.fromarray(image.numpy())} if with_image else {}
    expected = expected_frames(reference, seed, **inputs)
    pipeline = build_pipeline(FastVideoArgs(model_path=wan22_ti2v, device="cpu"))
    frames = pipeline.forward(batch_for(pipeline, seed, image if with_image else None)).frames[0]
    assert_within_two(frames, expected)


@pytest.mark.parametrize(
    ("model", "steps", "scales", "canvas"),
    [
        ("tiny_wan", 50, (5.0, None), (480, 832, 81, 16)),
        ("wan21_i2v", 40, (5.0, None), (480, 832, 81, 16)),
        ("wan22_i2v", 40, (3.5, None), (480, 832, 81, 16)),
        ("wan22_ti2v", 50, (5.0, None), (704, 1280, 121, 24)),
    ],
)
def test_a_request_that_says_nothing_has_the_steps_and_guidance_of_wans_own_code(model, steps, scales, canvas, request):
    sampling = build_pipeline(FastVideoArgs(model_path=request.getfixturevalue(model)), ()).sampling_defaults()
    assert (sampling.num_inference_steps, sampling.guidance_scale, sampling.guidance_scale_2) == (steps, *scales)
    assert (sampling.height, sampling.width, sampling.num_frames, sampling.fps) == canvas
    assert sampling.flow_shift is None and sampling.negative_prompt == ""


def test_an_image_whose_encoding_is_not_finite_has_no_result():
    for stage, field in ((ImageEncodingStage(None, None), "image_embeds"), (ImageLatentStage(None), "image_latents")):
        with pytest.raises(FloatingPointError, match=f"encoding gave NaN or infinite {field}; try"):
            stage.verify_output(ForwardBatch(**{field: torch.tensor([0.0, torch.nan])}), FastVideoArgs())


@pytest.mark.parametrize("model", ["wan21_i2v", "wan22_i2v", "wan22_ti2v"])
def test_phases_apart_make_the_same_video_as_together(model, image, request):
    path = request.getfixturevalue(model)
    together = build_pipeline(FastVideoArgs(model_path=path, device="cpu"))
    expected = together.forward(batch_for(together, 7, image)).frames
    batch = batch_for(together, 7, image)
    for phase in Phase:
        pipeline = build_pipeline(FastVideoArgs(model_path=path, device="cpu"), [phase])
        batch = pipeline.forward(batch)
        if phase is not Phase.DECODE:
            fields = pipeline.hands_on[phase]
            negative = [f"negative_{name}" for name in fields if "prompt" in name]
            state = export_sample(batch, [*fields, *negative], 0)
            batch = ForwardBatch(prompt=[PROMPT], seeds=[7], sampling=batch.sampling)
            import_sample(batch, *state)
    assert torch.equal(batch.frames, expected)


@pytest.mark.parametrize("model", ["wan21_i2v", "wan22_ti2v"])
def test_a_data_set_run_makes_the_generators_latents(model, image, request, tmp_path, monkeypatch):
    """TI2V makes videos of texts alone beside them."""
    path = request.getfixturevalue(model)
    Image.fromarray(image.numpy()).save(tmp_path / "first.png")
    rows = [{"prompt": PROMPT, "image": "first.png"}]
    rows += [{"prompt": PROMPT}] if model == "wan22_ti2v" else []
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = CANVAS | {"num_inference_steps": 2, "negative_prompt": NEGATIVE}
    values = {"prompts": str(tmp_path / "prompts.jsonl"), "output": str(tmp_path / "out"), "sampling": sampling}
    config = parse_config(values | {"model": path})
    for phase in (Phase.ENCODE, Phase.DENOISE):
        plan = plan_run(config)
        for shard in write_shards(plan.run, plan.scan, config, 1):
            if shard.phase is phase:
                worker = GPUWorker(FastVideoArgs(model_path=path, device="cpu"), [phase])
                run_stage_job(plan.run, phase, shard.path, worker, JobSettings())
    generator, made = VideoGenerator.from_pretrained(path, device="cpu"), []
    forward = generator.executor.worker.execute_forward
    monkeypatch.setattr(
        generator.executor.worker, "execute_forward", lambda *call: made.append(forward(*call)) or made[-1]
    )
    samples = list(plan.run.iter_samples())
    assert [sample.image is None for sample in samples] == [False, True][: len(rows)]
    for sample in samples:
        source = str(tmp_path / "first.png") if sample.image else None
        generator.generate_video(PROMPT, image_path=source, seed=sample.seed, **sampling)
        tensors, _ = unpack_state(
            plan.run.objects.read(latents_path(plan.run.keys[Phase.DENOISE], sample.id)), sample.id
        )
        assert torch.equal(tensors["latents"], made[-1].latents[0])


@pytest.mark.parametrize("with_image", [True, False])
def test_a_generator_says_what_it_lacks_or_cannot_use(with_image, wan22_i2v, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    generator = VideoGenerator.from_pretrained(EMBEDDED_MODEL if with_image else wan22_i2v, device="cpu")
    with pytest.raises(ValueError, match="prompts alone" if with_image else "image is missing"):
        generator.generate_video(PROMPT, image_path=str(tmp_path / "x.png") if with_image else None)


def test_an_image_is_stretched_over_the_canvas_as_diffusers_does(image):
    from diffusers.video_processor import VideoProcessor

    expected = VideoProcessor(vae_scale_factor=8).preprocess(Image.fromarray(image.numpy()), height=32, width=64)
    torch.testing.assert_close(to_canvas(image, 32, 64), expected[0])


def test_image_latents_say_which_frames_were_given(wan22_i2v, image):
    pipeline = build_pipeline(FastVideoArgs(model_path=wan22_i2v, device="cpu"), [Phase.ENCODE])
    latents = pipeline.forward(batch_for(pipeline, 1, image)).image_latents
    assert latents.shape == (1, 20, 3, 4, 8) and latents.dtype is torch.float32
    assert (latents[:, :4, 0] == 1).all() and (latents[:, :4, 1:] == 0).all()


def test_the_vae_encodes_and_decodes_for_models_that_take_images(wan22_ti2v, wan22_i2v, tiny_wan):
    for path, encodes in ((wan22_ti2v, True), (wan22_i2v, True), (tiny_wan, False)):
        pipeline = build_pipeline(FastVideoArgs(model_path=path), ())
        assert ("vae" in pipeline.components(Phase.ENCODE)) is encodes
        assert "vae" in pipeline.components(Phase.DECODE)
        assert ("image" in pipeline.input_fields()) is encodes


def test_an_image_is_asked_for_or_refused_in_one_clear_line(wan22_i2v, tiny_wan, image):
    animating = build_pipeline(FastVideoArgs(model_path=wan22_i2v, device="cpu"), [Phase.ENCODE])
    with pytest.raises(ValueError, match="image is missing"):
        animating.forward(batch_for(animating, 1))
    with pytest.raises(ValueError, match=r"image of torch.float32 \[51, 65, 3\] must be uint8 \[height, width, 3\]"):
        animating.forward(batch_for(animating, 1, image.float()))
    from_text = build_pipeline(FastVideoArgs(model_path=tiny_wan, device="cpu"), [Phase.ENCODE])
    with pytest.raises(ValueError, match="image was given, but this model makes videos of prompts alone"):
        from_text.forward(batch_for(from_text, 1, image))
