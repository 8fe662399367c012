"""A toy model for whole denoising runs, and what every scheduler of ours must do."""

from collections.abc import Callable

import pytest
import torch

ToyModel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture
def toy_model() -> ToyModel:
    """A nonlinear prediction that mixes channels and depends on the timestep."""
    mixing = torch.randn(16, 16) / 4

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.einsum("ij,bjthw->bithw", mixing, latents)) * (1 + timestep / 1000)

    return predict


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 5)


@pytest.fixture
def denoise() -> Callable:
    """All steps of our scheduler, from ``start`` on."""

    def run(scheduler, model: ToyModel, latents: torch.Tensor, start: int = 0) -> torch.Tensor:
        for index in range(start, len(scheduler.timesteps)):
            latents = scheduler.step(model(latents, scheduler.timesteps[index]), index, latents)
        return latents

    return run


@pytest.fixture
def denoise_with_diffusers() -> Callable:
    """All steps of diffusers' scheduler."""

    def run(scheduler, model: ToyModel, latents: torch.Tensor) -> torch.Tensor:
        for timestep in scheduler.timesteps:
            (latents,) = scheduler.step(model(latents, timestep), timestep, latents, return_dict=False)
        return latents

    return run


@pytest.fixture
def assert_resumes_at_every_step(toy_model, latents, denoise) -> Callable:
    """A new scheduler given the state after any step ends on the same bits as one that was not interrupted."""

    def check(build: Callable, num_steps: int) -> None:
        whole = build()
        whole.set_timesteps(num_steps, "cpu")
        expected = denoise(whole, toy_model, latents)
        first = build()
        first.set_timesteps(num_steps, "cpu")
        current = latents
        for index, timestep in enumerate(first.timesteps):
            current = first.step(toy_model(current, timestep), index, current)
            state = {k: v.clone() if torch.is_tensor(v) else v for k, v in first.state_dict().items()}
            second = build()
            second.set_timesteps(num_steps, "cpu")
            second.load_state_dict(state)
            assert torch.equal(denoise(second, toy_model, current, start=index + 1), expected)

    return check


@pytest.fixture
def assert_steps_read_no_tensor() -> Callable:
    """Tensors without data go through all steps, so no step reads a value or leaves the device."""

    def check(scheduler, num_steps: int) -> None:
        scheduler.set_timesteps(num_steps, "cpu")
        empty = torch.empty(1, 16, 3, 4, 5, device="meta")
        for index in range(num_steps):
            assert scheduler.step(empty, index, empty).device.type == "meta"

    return check
