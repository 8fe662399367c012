"""UniPCMultistepScheduler against diffusers' class of the same name."""

import json
from pathlib import Path

import diffusers
import pytest
import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.models.schedulers.unipc import UniPCMultistepScheduler

TOLERANCE = 1e-5  # max|a - b| / max|b| after all steps; measured: under 1e-6
CONFIG = json.loads(Path(EMBEDDED_MODEL, "scheduler/scheduler_config.json").read_text())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [1, 2, 8, 20, 50])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {"flow_shift": 5.0},
        {"disable_corrector": [0, 2]},
        {"use_flow_sigmas": False, "prediction_type": "epsilon"},
        {"use_flow_sigmas": False, "prediction_type": "sample", "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ],
    ids=str,
)
def test_latents_match_diffusers(change, num_steps, toy_model, latents, denoise, denoise_with_diffusers, max_error):
    ours = UniPCMultistepScheduler.from_config({**CONFIG, **change})
    reference = diffusers.UniPCMultistepScheduler.from_config({**CONFIG, **change})
    ours.set_timesteps(num_steps, "cpu")
    reference.set_timesteps(num_steps, "cpu")
    assert ours.timesteps.dtype == torch.int64
    assert torch.equal(ours.timesteps, reference.timesteps)
    expected = denoise_with_diffusers(reference, toy_model, latents)
    assert max_error(denoise(ours, toy_model, latents), expected) < TOLERANCE


@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_a_run_resumes_bit_for_bit_at_every_step(solver_order, assert_resumes_at_every_step):
    config = {**CONFIG, "solver_order": solver_order}
    assert_resumes_at_every_step(lambda: UniPCMultistepScheduler.from_config(config), num_steps=9)


def test_an_incomplete_state_is_refused(toy_model, latents):
    scheduler = UniPCMultistepScheduler.from_config(CONFIG)
    scheduler.set_timesteps(4, "cpu")
    scheduler.load_state_dict({"next_step": 2, "last_sample": latents, "prediction_0": latents})
    with pytest.raises(AssertionError, match="not all there"):
        scheduler.step(latents, 2, latents)


def test_steps_read_no_tensor(assert_steps_read_no_tensor):
    assert_steps_read_no_tensor(UniPCMultistepScheduler.from_config(CONFIG), num_steps=8)


def test_set_timesteps_forgets_the_run_before(toy_model, latents, denoise):
    scheduler = UniPCMultistepScheduler.from_config(CONFIG)
    scheduler.set_timesteps(8, "cpu")
    first = denoise(scheduler, toy_model, latents)
    scheduler.set_timesteps(8, "cpu")
    assert scheduler.state_dict() == {"next_step": 0}
    assert torch.equal(denoise(scheduler, toy_model, latents), first)


def test_set_shift_is_as_if_built_with_it(toy_model, latents, denoise):
    built = UniPCMultistepScheduler.from_config(CONFIG, flow_shift=7.0)
    built.set_timesteps(8, "cpu")
    changed = UniPCMultistepScheduler.from_config(CONFIG)
    changed.set_timesteps(8, "cpu")
    changed.set_shift(7.0)
    changed.set_timesteps(8, "cpu")
    assert torch.equal(changed.timesteps, built.timesteps)
    assert torch.equal(denoise(changed, toy_model, latents), denoise(built, toy_model, latents))


def test_a_bfloat16_model_leaves_latents_in_float32(toy_model, latents, denoise):
    scheduler = UniPCMultistepScheduler.from_config(CONFIG)
    scheduler.set_timesteps(4, "cpu")
    result = denoise(scheduler, lambda x, t: toy_model(x, t).bfloat16(), latents)
    assert result.dtype == torch.float32
    assert all(v.dtype == torch.float32 for v in scheduler.state_dict().values() if torch.is_tensor(v))


def test_a_step_leaves_its_inputs_alone(toy_model, latents):
    scheduler = UniPCMultistepScheduler.from_config(CONFIG)
    scheduler.set_timesteps(4, "cpu")
    before = latents.clone()
    scheduler.step(toy_model(latents, scheduler.timesteps[0]), 0, latents)
    latents_kept = scheduler.state_dict()["last_sample"]
    assert torch.equal(latents, before)
    assert latents_kept.data_ptr() != latents.data_ptr(), "a caller may write over its latents"


def test_steps_out_of_order_are_refused(latents):
    scheduler = UniPCMultistepScheduler.from_config(CONFIG)
    scheduler.set_timesteps(4, "cpu")
    with pytest.raises(AssertionError, match="step 2 after step -1"):
        scheduler.step(latents, 2, latents)


def test_an_unknown_config_key_is_ignored():
    assert UniPCMultistepScheduler.from_config({**CONFIG, "key_of_next_year": 1}).config.flow_shift == 3.0


def test_steps_that_are_not_linear_are_refused():
    scheduler = UniPCMultistepScheduler.from_config({**CONFIG, "thresholding": True})
    with pytest.raises(ValueError, match="set thresholding to false"):
        scheduler.set_timesteps(4, "cpu")


# With these diffusers ends on latents that are not a number.
@pytest.mark.parametrize("change", [{"lower_order_final": False}, {"solver_type": "bh1"}], ids=str)
def test_weights_that_are_not_finite_are_refused(change):
    scheduler = UniPCMultistepScheduler.from_config({**CONFIG, **change})
    with pytest.raises(ValueError, match=r"step 3 of 4 has no finite weights .* use 'bh2', true and 'zero'"):
        scheduler.set_timesteps(4, "cpu")
