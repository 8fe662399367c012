"""UniPC (arXiv 2302.04867), a multistep predictor-corrector; the mathematics is diffusers'.

Every step is linear: the next latents are a weighted sum of the latents, the model's output, and what was kept of the
steps before. The weights depend on the timesteps alone, so they are read off diffusers' own step ahead of time, by
running it in float64 on unit vectors; on the device remain a few multiplications and additions.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from diffusers.schedulers import scheduling_unipc_multistep as reference

from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.sampling_params import SamplingParams

# The inputs of a step, in the order of its weights; earlier predictions follow, newest first.
_SAMPLE, _MODEL_OUTPUT, _LAST_SAMPLE, _FIRST_PREDICTION = range(4)


class _StepWeights(NamedTuple):
    """The weights of one step's three results over its inputs."""

    next_sample: list[float]
    corrected_sample: list[float]
    prediction: list[float]


class UniPCMultistepScheduler(reference.UniPCMultistepScheduler):
    """diffusers' scheduler of the same name with steps that wait for no device; see ``Scheduler``."""

    _weights: tuple[_StepWeights, ...] = ()
    _weights_key: tuple[int, float, tuple[float, ...] | None] | None = None
    _next_step = 0
    _last_sample: torch.Tensor | None = None  # the corrected latents of the step before
    _predictions: tuple[torch.Tensor, ...] = ()  # the converted model outputs before, newest first

    @property
    def shift(self) -> float:
        return self.config["flow_shift"]

    def set_shift(self, shift: float) -> None:
        self.register_to_config(flow_shift=shift)

    def set_request(self, sampling: SamplingParams, seeds: Sequence[int]) -> None:
        """Steps draw no noise, and serve any request."""

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int, device: str | torch.device, sigmas: list[float] | None = None
    ) -> None:
        if self.config["thresholding"] or self.config["solver_p"] is not None:
            raise ValueError(
                f"thresholding={self.config['thresholding']}, solver_p={self.config['solver_p']}: only linear steps "
                "are supported; set thresholding to false and solver_p to null"
            )
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
        key = (num_inference_steps, self.config["flow_shift"], None if sigmas is None else tuple(sigmas))
        if key != self._weights_key:
            self._weights = _tabulate(self.config, self.sigmas, self.timesteps.tolist())
            self._weights_key = key
        self._next_step, self._last_sample, self._predictions = 0, None, ()

    def step(  # type: ignore[override]
        self, model_output: torch.Tensor, step_index: int, sample: torch.Tensor
    ) -> torch.Tensor:
        assert step_index == self._next_step, f"step {step_index} after step {self._next_step - 1}"
        inputs = [sample, model_output.to(sample.dtype), self._last_sample, *self._predictions]
        weights = self._weights[step_index]
        prediction = _weighted_sum(weights.prediction, inputs)
        self._last_sample = _weighted_sum(weights.corrected_sample, inputs)
        self._predictions = (prediction, *self._predictions)[: self.config["solver_order"]]
        self._next_step += 1
        return _weighted_sum(weights.next_sample, inputs)

    def state_dict(self) -> SchedulerState:
        state: SchedulerState = {"next_step": self._next_step}
        if self._last_sample is not None:
            state["last_sample"] = self._last_sample
        return state | {f"prediction_{age}": tensor for age, tensor in enumerate(self._predictions)}

    def load_state_dict(self, state: SchedulerState) -> None:
        tensors = {name: value.to(self.timesteps.device) for name, value in state.items() if torch.is_tensor(value)}
        self._next_step = int(state["next_step"])
        self._last_sample = tensors.get("last_sample")
        self._predictions = tuple(tensors[f"prediction_{age}"] for age in range(len(tensors) - 1))


def _weighted_sum(weights: list[float], inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """A new tensor, the sum of the inputs that have a weight; the first steps lack the later inputs."""
    total: torch.Tensor | None = None
    for weight, tensor in zip_longest(weights, inputs):
        if weight:
            assert tensor is not None, f"the state of the steps before is not all there: {len(inputs)} inputs"
            total = tensor * weight if total is None else total.add_(tensor, alpha=weight)
    assert total is not None, f"no input has a weight in {weights}"
    return total


def _tabulate(config: dict, sigmas: torch.Tensor, timesteps: list[int]) -> tuple[_StepWeights, ...]:
    """The weights of every step: diffusers' step applied to one unit vector an input."""
    solver = reference.UniPCMultistepScheduler.from_config(config)
    solver.set_timesteps(len(timesteps), device="cpu")
    solver.set_begin_index(0)
    solver.sigmas = sigmas.double()
    unit = torch.eye(_FIRST_PREDICTION + config["solver_order"], dtype=torch.float64, device="cpu").unsqueeze(1)
    table = []
    for index, timestep in enumerate(timesteps):
        if index > 0:
            solver.last_sample = unit[_LAST_SAMPLE]
        num_known = min(index, config["solver_order"])
        for age in range(num_known):
            solver.model_outputs[-1 - age] = unit[_FIRST_PREDICTION + age]
        (next_sample,) = solver.step(unit[_MODEL_OUTPUT], timestep, unit[_SAMPLE], return_dict=False)
        results = (next_sample, solver.last_sample, solver.model_outputs[-1])
        if not all(result.isfinite().all() for result in results):
            raise ValueError(
                f"step {index} of {len(timesteps)} has no finite weights with solver_type={config['solver_type']!r}, "
                f"lower_order_final={config['lower_order_final']}, final_sigmas_type={config['final_sigmas_type']!r}; "
                "use 'bh2', true and 'zero'"
            )
        table.append(_StepWeights(*(result.squeeze(0).tolist() for result in results)))
    return tuple(table)
