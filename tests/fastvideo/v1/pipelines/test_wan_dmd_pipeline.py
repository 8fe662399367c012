"""A distilled Wan, as published: its own pipeline class over a scheduler config that names another sampler."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.models.schedulers.dmd import DMDScheduler
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline
from fastvideo.v1.sampling_params import SamplingParams

SAMPLING = SamplingParams(height=64, width=64, num_frames=5, num_inference_steps=3, guidance_scale=1.0)


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    folder = tmp_path / "distilled"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanDMDPipeline"}))
    (folder / "sampling_defaults.json").unlink()
    return folder


def build(folder: Path) -> ComposedPipelineBase:
    return build_pipeline(FastVideoArgs(model_path=str(folder), device="cpu"), [Phase.DENOISE])


def make_batch(seeds: list[int], embeds: torch.Tensor, sampling: SamplingParams = SAMPLING) -> ForwardBatch:
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    return ForwardBatch(
        prompt=["p"] * len(seeds), seeds=seeds, sampling=sampling, prompt_embeds=embeds, prompt_mask=mask
    )


@pytest.fixture
def embeds() -> torch.Tensor:
    width = json.loads((Path(EMBEDDED_MODEL) / "transformer/config.json").read_text())["text_dim"]
    return torch.randn(1, 9, width)


def test_three_steps_and_no_guidance_are_the_defaults(distilled):
    pipeline = build(distilled)
    defaults = pipeline.sampling_defaults()
    assert (defaults.num_inference_steps, defaults.is_guided, defaults.flow_shift) == (3, False, None)
    assert isinstance(pipeline.get_module("scheduler"), DMDScheduler) and pipeline.get_module("scheduler").shift == 8.0


def test_the_timesteps_of_a_checkpoint_that_has_them_are_taken(distilled, embeds):
    index = json.loads((distilled / "model_index.json").read_text()) | {"scheduler": ["fastvideo", "DMDScheduler"]}
    (distilled / "model_index.json").write_text(json.dumps(index))
    config = {"_class_name": "DMDScheduler", "denoising_timesteps": [1000, 800, 600, 400], "shift": 5.0}
    (distilled / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    sampling = SAMPLING.with_overrides(num_inference_steps=4)
    batch = build(distilled).forward(make_batch([7], embeds, sampling))
    assert batch.timesteps.tolist() == [1000, 800, 600, 400] and batch.step_index == 4


def test_an_interrupted_sample_ends_on_the_same_bytes(distilled, embeds):
    states = []

    def keep(batch: ForwardBatch) -> None:
        states.append((batch.step_index, batch.latents.clone(), dict(batch.scheduler_state)))

    expected = build(distilled).forward(make_batch([7], embeds), ForwardContext(on_step=keep)).latents
    for step_index, latents, state in states[:-1]:
        batch = make_batch([7], embeds)
        batch.step_index, batch.latents, batch.scheduler_state = step_index, latents, state
        assert torch.equal(build(distilled).forward(batch).latents, expected)
    assert not torch.equal(build(distilled).forward(make_batch([8], embeds)).latents, expected)


def test_guidance_is_refused(distilled, embeds):
    with pytest.raises(ValueError, match=r"guidance_scale=5.0 must be 1: this checkpoint was distilled"):
        build(distilled).forward(make_batch([7], embeds, SAMPLING.with_overrides(guidance_scale=5.0)))
