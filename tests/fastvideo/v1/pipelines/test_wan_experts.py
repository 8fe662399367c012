"""Wan2.2 A14B, whose two experts share the steps, against diffusers' ``WanPipeline``."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from fastvideo import VideoGenerator
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.registry import build_pipeline

PROMPT, NEGATIVE = "a red circle and a white star", "gray"
CANVAS = {"height": 32, "width": 48, "num_frames": 5}


@pytest.fixture(scope="module")
def experts(variant_of_wan, tiny_transformer) -> str:
    components = {"transformer": tiny_transformer(), "transformer_2": tiny_transformer()}
    return variant_of_wan(components, boundary_ratio=0.875)


# With a flow shift of 3 the first expert does three steps in ten.
@pytest.mark.parametrize("guidance", [(4.0, 3.0), (4.0, 1.0), (3.5, None), (1.0, None)])
def test_frames_are_within_two_of_diffusers(experts, guidance, assert_within_two):
    seed = torch.seed() % 2**32
    scales = {"guidance_scale": guidance[0], "guidance_scale_2": guidance[1]}
    reference = diffusers.WanPipeline.from_pretrained(experts, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        PROMPT,
        NEGATIVE,
        **CANVAS,
        **scales,
        num_inference_steps=8,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    ).frames[0]
    generator = VideoGenerator.from_pretrained(experts, device="cpu")
    frames = generator.generate_video(
        PROMPT, **CANVAS, **scales, num_inference_steps=8, seed=seed, negative_prompt=NEGATIVE
    ).frames
    assert_within_two(frames, expected)


def test_each_expert_does_the_steps_on_its_side_of_the_boundary(experts, monkeypatch):
    generator = VideoGenerator.from_pretrained(experts, device="cpu")
    seen = []
    for name in ("transformer", "transformer_2"):
        model = generator.executor.worker.pipeline.get_module(name)
        forward = model.forward

        def spy(latents, text, timestep, *rest, name=name, forward=forward):
            seen.append((name, timestep.item()))
            return forward(latents, text, timestep, *rest)

        monkeypatch.setattr(model, "forward", spy)
    generator.generate_video(PROMPT, **CANVAS, guidance_scale=1.0, num_inference_steps=9)
    assert [name for name, _ in seen] == ["transformer"] * 3 + ["transformer_2"] * 6
    assert seen[2][1] >= 875 > seen[3][1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_keeping_one_expert_away_changes_nothing_with_and_without_an_adapter(experts, tmp_path):
    width, name = 40, "transformer.blocks.0.attn1.to_v.lora"
    pair = {f"{name}_A.weight": torch.randn(4, width), f"{name}_B.weight": torch.randn(width, 4)}
    save_file(pair, path := str(tmp_path / "adapter.safetensors"))
    plain, adapted = [], []
    for offload in (False, True):
        generator = VideoGenerator.from_pretrained(experts, device="cuda", precision="float32", expert_offload=offload)
        plain.append(generator.generate_video(PROMPT, **CANVAS, num_inference_steps=6, seed=5).frames)
        generator.set_lora(path)
        adapted.append(generator.generate_video(PROMPT, **CANVAS, num_inference_steps=6, seed=5).frames)
    assert torch.equal(*plain) and torch.equal(*adapted) and not torch.equal(plain[0], adapted[0])


def test_offloading_and_eight_bits_exclude_each_other():
    with pytest.raises(ValueError, match="expert_offload=True and quantization='fp8' exclude each other"):
        FastVideoArgs(expert_offload=True, quantization="fp8")


def test_both_experts_and_the_boundary_are_part_of_what_denoises(experts, tiny_wan):
    pipeline = build_pipeline(FastVideoArgs(model_path=experts), ())
    assert pipeline.components(Phase.DENOISE) == ("transformer", "scheduler", "transformer_2")
    assert pipeline.settings()[Phase.DENOISE] == {"boundary_ratio": 0.875}
    assert "transformer_2" not in build_pipeline(FastVideoArgs(model_path=tiny_wan), ()).components(Phase.DENOISE)


@pytest.mark.parametrize("index", [{"boundary_ratio": 0.9}, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}])
def test_a_boundary_and_a_second_expert_come_together(variant_of_wan, index):
    with pytest.raises(ValueError, match=r"index\.json: boundary_ratio=.* and transformer_2=.* must come together"):
        build_pipeline(FastVideoArgs(model_path=variant_of_wan({}, **index)), ())


def test_it_is_said_that_an_adapter_is_for_one_expert(experts, tmp_path, caplog):
    pair = {"proj_out.lora_A.weight": torch.zeros(2, 40), "proj_out.lora_B.weight": torch.zeros(64, 2)}
    save_file(pair, path := str(tmp_path / "adapter.safetensors"))
    line = f"adapter {path} changes the expert of high noise (transformer) alone; transformer_2 stays as it is"
    generator = VideoGenerator.from_pretrained(experts, device="cpu", lora_path=path)
    assert caplog.messages.count(line) == 1
    generator.set_lora(path)
    assert caplog.messages.count(line) == 2
    generator.set_lora(None)
    assert caplog.messages.count(line) == 2


def test_a_model_with_one_transformer_refuses_a_second_guidance_scale(tiny_wan):
    generator = VideoGenerator.from_pretrained(tiny_wan, device="cpu")
    with pytest.raises(ValueError, match=r"guidance_scale_2=3.0 is for a model of two experts"):
        generator.generate_video(PROMPT, **CANVAS, num_inference_steps=2, guidance_scale_2=3.0)
