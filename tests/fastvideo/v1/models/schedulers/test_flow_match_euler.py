"""FlowMatchEulerDiscreteScheduler against diffusers' class of the same name."""

import diffusers
import pytest
import torch

from fastvideo.v1.models.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize("num_steps", [2, 6, 8, 20, 50])
@pytest.mark.parametrize(
    "change", [{}, {"shift": 7.0}, {"shift": 17.0}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}], ids=str
)
def test_latents_equal_those_of_diffusers(change, num_steps, toy_model, latents, denoise, denoise_with_diffusers):
    ours = FlowMatchEulerDiscreteScheduler(**change)
    reference = diffusers.FlowMatchEulerDiscreteScheduler(**change)
    ours.set_timesteps(num_steps, "cpu")
    reference.set_timesteps(num_steps, "cpu")
    assert torch.equal(ours.timesteps, reference.timesteps)
    expected = denoise_with_diffusers(reference, toy_model, latents)
    assert torch.equal(denoise(ours, toy_model, latents), expected)


def test_a_run_resumes_bit_for_bit_at_every_step(assert_resumes_at_every_step):
    assert_resumes_at_every_step(lambda: FlowMatchEulerDiscreteScheduler(shift=7.0), num_steps=6)


def test_steps_read_no_tensor(assert_steps_read_no_tensor):
    assert_steps_read_no_tensor(FlowMatchEulerDiscreteScheduler(), num_steps=8)


def test_set_shift_is_as_if_built_with_it():
    built = FlowMatchEulerDiscreteScheduler(shift=7.0)
    changed = FlowMatchEulerDiscreteScheduler(shift=3.0)
    changed.set_shift(7.0)
    assert changed.config.shift == changed.shift == 7.0
    for scheduler in (built, changed):
        scheduler.set_timesteps(8, "cpu")
    assert torch.equal(changed.timesteps, built.timesteps)


def test_a_bfloat16_model_leaves_latents_in_float32(toy_model, latents, denoise):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4, "cpu")
    assert denoise(scheduler, lambda x, t: toy_model(x, t).bfloat16(), latents).dtype == torch.float32


def test_an_unknown_config_key_is_ignored():
    config = {"shift": 7.0, "key_of_next_year": 1}
    assert FlowMatchEulerDiscreteScheduler.from_config(config).shift == 7.0


def test_stochastic_sampling_is_refused():
    with pytest.raises(ValueError, match="stochastic_sampling=true is not supported"):
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).set_timesteps(4, "cpu")
