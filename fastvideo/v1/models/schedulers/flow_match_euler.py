"""The Euler steps of flow matching; timesteps and sigmas are diffusers'."""

from collections.abc import Sequence

import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete as reference

from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.sampling_params import SamplingParams


class FlowMatchEulerDiscreteScheduler(reference.FlowMatchEulerDiscreteScheduler):
    """diffusers' scheduler of the same name with steps that wait for no device; see ``Scheduler``."""

    timesteps: torch.Tensor  # type: ignore[assignment]  # diffusers reuses the name for an array
    _sigma_steps: tuple[float, ...] = ()
    _next_step = 0

    def set_shift(self, shift: float) -> None:
        # The base class keeps the sigma range of the shift it was built with; a run must not depend on that history.
        rebuilt = type(self).from_config(self.config, shift=shift)
        self.__dict__.update(rebuilt.__dict__)

    def set_request(self, sampling: SamplingParams, seeds: Sequence[int]) -> None:
        """Steps draw no noise, and serve any request."""

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, device: str | torch.device, sigmas: list[float] | None = None
    ) -> None:
        if self.config["stochastic_sampling"]:
            raise ValueError("stochastic_sampling=true is not supported: steps draw no noise; set it to false")
        # On the CPU whatever the device, so that every device gets the same numbers.
        super().set_timesteps(num_inference_steps, device="cpu", sigmas=sigmas)
        self._sigma_steps = tuple(self.sigmas.diff().tolist())
        self.timesteps = self.timesteps.to(device)
        self._next_step = 0

    def step(  # type: ignore[override]
        self, model_output: torch.Tensor, step_index: int, sample: torch.Tensor
    ) -> torch.Tensor:
        assert step_index == self._next_step, f"step {step_index} after step {self._next_step - 1}"
        self._next_step += 1
        return sample + model_output.to(sample.dtype) * self._sigma_steps[step_index]

    def state_dict(self) -> SchedulerState:
        return {"next_step": self._next_step}

    def load_state_dict(self, state: SchedulerState) -> None:
        self._next_step = int(state["next_step"])
