"""The few-step sampler of models distilled by distribution matching (DMD2, arXiv 2405.14867; FastVideo's FastWan).

At each of a few fixed timesteps the model's flow gives the clean latents, ``x0 = x - sigma v``; these are noised anew
to the next timestep, ``(1 - sigma') x0 + sigma' noise``, and after the last one kept.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers import scheduling_flow_match_euler_discrete as reference

from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.sampling_params import SamplingParams


class DMDScheduler(ConfigMixin):
    """``denoising_timesteps`` are those of the distillation; their sigmas lie on the grid that ``shift`` makes.

    A sample's noise is one stream of its seed: the first draw is what it starts from, each step takes the next. So it
    depends on neither its place in a batch nor on an interruption.
    """

    config_name = "scheduler_config.json"  # type: ignore[assignment]  # None in the base class

    timesteps: torch.Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 8.0,
        denoising_timesteps: Sequence[int] = (1000, 757, 522),
    ) -> None:
        self._seeds: tuple[int, ...] = ()
        self._sigmas: tuple[float, ...] = ()
        self._next_step = 0

    @property
    def shift(self) -> float:
        return self.config["shift"]

    def set_shift(self, shift: float) -> None:
        self.register_to_config(shift=shift)

    def set_request(self, sampling: SamplingParams, seeds: Sequence[int]) -> None:
        if sampling.is_guided:
            raise ValueError(
                f"guidance_scale={sampling.guidance_scale} must be 1: this checkpoint was distilled to need no guidance"
            )
        self._seeds = tuple(seeds)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device, sigmas: list[float] | None = None
    ) -> None:
        """Starts over with the timesteps of the distillation, whatever ``sigmas``."""
        timesteps = list(self.config["denoising_timesteps"])
        if num_inference_steps != len(timesteps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps} must be {len(timesteps)}: this checkpoint was distilled "
                f"for the timesteps {', '.join(map(str, timesteps))}"
            )
        grid = reference.FlowMatchEulerDiscreteScheduler(self.config["num_train_timesteps"], self.config["shift"])
        nearest = [int((grid.timesteps - timestep).abs().argmin()) for timestep in timesteps]
        self._sigmas = (*(float(grid.sigmas[index]) for index in nearest), 0.0)
        self.timesteps = torch.tensor(timesteps, device=device)
        self._next_step = 0

    def step(self, model_output: torch.Tensor, step_index: int, sample: torch.Tensor) -> torch.Tensor:
        assert step_index == self._next_step, f"step {step_index} after step {self._next_step - 1}"
        self._next_step += 1
        sigma, next_sigma = self._sigmas[step_index : step_index + 2]
        clean = sample - sigma * model_output.to(sample.dtype)
        if not next_sigma:
            return clean
        return (1 - next_sigma) * clean + next_sigma * self._noise(step_index, sample)

    def state_dict(self) -> SchedulerState:
        return {"next_step": self._next_step}

    def load_state_dict(self, state: SchedulerState) -> None:
        self._next_step = int(state["next_step"])

    def _noise(self, step_index: int, sample: torch.Tensor) -> torch.Tensor:
        """The draw of step ``step_index``, ``[b, c, t, h, w]``, from the beginning of each sample's stream."""
        if len(self._seeds) != len(sample):
            raise ValueError(f"{len(self._seeds)} seeds for {len(sample)} samples; this sampler's steps need one each")
        noise = torch.empty(sample.shape, device="cpu", pin_memory=sample.is_cuda)
        for seed, out in zip(self._seeds, noise, strict=True):
            generator = torch.Generator("cpu").manual_seed(seed)
            for _ in range(step_index + 2):
                torch.randn(out.shape, generator=generator, out=out)
        return noise.to(sample.device, non_blocking=True)
