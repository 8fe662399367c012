"""DMDScheduler against the loop of the paper, written out in float64."""

import pytest
import torch

from fastvideo.v1.models.schedulers.dmd import DMDScheduler
from fastvideo.v1.sampling_params import SamplingParams

UNGUIDED = SamplingParams(guidance_scale=1.0)


@pytest.fixture
def seeds() -> list[int]:
    return torch.randint(2**32, (3,)).tolist()


def build(seeds: list[int], **config) -> DMDScheduler:
    scheduler = DMDScheduler(**config)
    scheduler.set_request(UNGUIDED, seeds)
    scheduler.set_timesteps(len(scheduler.config["denoising_timesteps"]), "cpu")
    return scheduler


def draw_streams(seeds: list[int], shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    """The first ``count`` draws of every seed's generator, each ``[b, *shape]``."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [torch.stack([torch.randn(shape, generator=generator) for generator in generators]) for _ in range(count)]


@pytest.mark.parametrize(
    ("shift", "timesteps"), [(8.0, (1000, 757, 522)), (8.0, (1000,)), (3.0, (1000, 900, 750, 500, 250))]
)
def test_latents_equal_those_of_the_written_out_loop(shift, timesteps, seeds, toy_model, denoise, max_error):
    noises = draw_streams(seeds, (16, 3, 4, 5), len(timesteps))
    levels = [number / 1000 for number in range(1, 1001)]
    grid = [shift * level / (1 + (shift - 1) * level) for level in levels]
    sigmas = [min(grid, key=lambda sigma: abs(1000 * sigma - timestep)) for timestep in timesteps] + [0.0]
    x = noises[0].double()
    for index, timestep in enumerate(timesteps):
        flow = toy_model(x.float(), torch.tensor(timestep)).double()
        clean = x - sigmas[index] * flow
        fresh = noises[index + 1].double() if index + 1 < len(timesteps) else 0.0
        x = (1 - sigmas[index + 1]) * clean + sigmas[index + 1] * fresh
    scheduler = build(seeds, shift=shift, denoising_timesteps=timesteps)
    assert scheduler.timesteps.tolist() == list(timesteps)
    assert max_error(denoise(scheduler, toy_model, noises[0]).double(), x) < 1e-5


def test_a_run_resumes_bit_for_bit_at_every_step(seeds, assert_resumes_at_every_step):
    def begin() -> DMDScheduler:
        scheduler = DMDScheduler(denoising_timesteps=(1000, 900, 750, 500))
        scheduler.set_request(UNGUIDED, seeds[:1])
        return scheduler

    assert_resumes_at_every_step(begin, num_steps=4)


def test_a_sample_is_the_same_at_every_place_of_a_batch(seeds, toy_model, denoise):
    (start,) = draw_streams(seeds, (16, 3, 4, 5), 1)
    order = [2, 0, 1]
    together = denoise(build(seeds), lambda x, t: x / 2, start)
    shuffled = denoise(build([seeds[place] for place in order]), lambda x, t: x / 2, start[order])
    assert torch.equal(shuffled, together[order])
    for place, seed in enumerate(seeds):
        alone = denoise(build([seed]), lambda x, t: x / 2, start[place : place + 1])
        assert torch.equal(alone, together[place : place + 1])


def test_every_draw_is_fresh(seeds):
    scheduler, zero = build(seeds, denoising_timesteps=(1000, 757, 522)), torch.zeros(3, 16, 3, 4, 5)
    draws = [draw_streams(seeds, (16, 3, 4, 5), 1)[0], *(scheduler.step(zero, index, zero) for index in range(2))]
    flat = torch.stack([draw.flatten() / draw.std() for draw in draws])
    correlation = (flat @ flat.T / flat.shape[1] - torch.eye(3)).abs().max()
    assert correlation < 0.15


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_noise(seeds):
    zero = torch.zeros(3, 16, 3, 4, 5)
    assert torch.equal(build(seeds).step(zero.cuda(), 0, zero.cuda()).cpu(), build(seeds).step(zero, 0, zero))


def test_steps_read_no_tensor(seeds, assert_steps_read_no_tensor):
    scheduler = DMDScheduler()
    scheduler.set_request(UNGUIDED, seeds[:1])
    assert_steps_read_no_tensor(scheduler, num_steps=3)


def test_set_shift_is_as_if_built_with_it(seeds, toy_model, denoise):
    (start,) = draw_streams(seeds, (16, 3, 4, 5), 1)
    changed = DMDScheduler(shift=3.0)
    changed.set_shift(8.0)
    changed.set_request(UNGUIDED, seeds)
    changed.set_timesteps(3, "cpu")
    assert changed.shift == 8.0
    assert torch.equal(denoise(changed, toy_model, start), denoise(build(seeds), toy_model, start))


def test_a_config_of_a_checkpoint_is_taken_and_unknown_keys_ignored():
    config = {"_class_name": "DMDScheduler", "denoising_timesteps": [1000, 500], "shift": 5.0, "key_of_next_year": 1}
    scheduler = DMDScheduler.from_config(config)
    scheduler.set_timesteps(2, "cpu")
    assert scheduler.timesteps.tolist() == [1000, 500] and scheduler.shift == 5.0


def test_other_step_counts_guidance_and_missing_seeds_are_one_clear_line(seeds):
    scheduler = build(seeds)
    with pytest.raises(ValueError, match=r"num_inference_steps=50 must be 3: .* the timesteps 1000, 757, 522"):
        scheduler.set_timesteps(50, "cpu")
    with pytest.raises(ValueError, match=r"guidance_scale=5.0 must be 1: this checkpoint was distilled"):
        scheduler.set_request(SamplingParams(guidance_scale=5.0), seeds)
    embedded = SamplingParams(guidance_scale=6.0, guidance_mode="embedded")
    scheduler.set_request(embedded, [])
    with pytest.raises(ValueError, match="0 seeds for 1 samples"):
        scheduler.step(torch.zeros(1, 4, 1, 2, 2), 0, torch.zeros(1, 4, 1, 2, 2))
