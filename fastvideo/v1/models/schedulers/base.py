"""What the denoising loop asks of a scheduler."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch

from fastvideo.v1.sampling_params import SamplingParams

SchedulerState: TypeAlias = dict[str, torch.Tensor | int | float]


class Scheduler(Protocol):
    """Timesteps for the model, and the step from one set of latents to the next.

    ``step`` waits for no device: every coefficient is a Python number by the time ``set_timesteps`` returns. Latents
    and scheduler state are float32 whatever the model's dtype.
    """

    timesteps: torch.Tensor

    @property
    def shift(self) -> float:
        """The flow shift in use: the checkpoint's, until ``set_shift``."""
        ...

    def set_shift(self, shift: float) -> None:
        """Take another flow shift, as if built with it; ``set_timesteps`` must follow."""
        ...

    def set_request(self, sampling: SamplingParams, seeds: Sequence[int]) -> None:
        """Take what the steps of a request depend on beside its timesteps: noise is drawn from its samples' seeds.

        Raises ``ValueError`` for a request that this sampler cannot serve.
        """
        ...

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device, sigmas: list[float] | None = None
    ) -> None:
        """Start over with ``num_inference_steps`` timesteps, ``[num_inference_steps]`` on ``device``.

        ``sigmas`` are the noise levels before the shift, where they are not the scheduler's own choice.
        """
        ...

    def step(self, model_output: torch.Tensor, step_index: int, sample: torch.Tensor) -> torch.Tensor:
        """The latents after step ``step_index``; steps are taken in order. All shapes ``[b c t h w]``."""
        ...

    def state_dict(self) -> SchedulerState:
        """All that the steps to come need beside the latents; the tensors are shared, not copied."""
        ...

    def load_state_dict(self, state: SchedulerState) -> None:
        """Go on from ``state_dict`` of another process, after ``set_timesteps`` as there: bit for bit the same."""
        ...
