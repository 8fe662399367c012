"""The one payload that travels through a pipeline's stages.

Legend: ``b`` samples, ``l`` text tokens, ``e`` text width, ``c t h w`` latent channels, frames, height, width.
"""

from dataclasses import dataclass, field

import torch

from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.sampling_params import SamplingParams


@dataclass(kw_only=True)
class ForwardBatch:
    """What the stages of one call read and write; each comment names the stage that writes the field.

    A custom stage that needs a field of its own subclasses this, or uses ``custom``, which is saved with the rest.
    """

    # the request
    prompt: list[str] = field(default_factory=list)
    negative_prompt: list[str] | None = None  # None: sampling.negative_prompt for every sample
    seeds: list[int] = field(default_factory=list)
    image: list[torch.Tensor] | None = None  # uint8 [h, w, 3] each, of any size; image-to-video only
    sampling: SamplingParams = field(default_factory=SamplingParams)

    # encode
    prompt_embeds: torch.Tensor | None = None  # [b, l, e], zero where masked: TextEncodingStage
    prompt_mask: torch.Tensor | None = None  # [b, l] bool: TextEncodingStage
    negative_prompt_embeds: torch.Tensor | None = None  # as prompt_embeds, with guidance only
    negative_prompt_mask: torch.Tensor | None = None
    pooled_prompt_embeds: torch.Tensor | None = None  # [b, e]: CLIPTextEncodingStage
    negative_pooled_prompt_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None  # [b, l, e]: ImageEncodingStage
    image_latents: torch.Tensor | None = None  # [b, c, t, h, w] float32: ImageLatentStage

    # denoise
    timesteps: torch.Tensor | None = None  # [steps]: TimestepPreparationStage
    latents: torch.Tensor | None = None  # [b, c, t, h, w] float32: LatentPreparationStage, then DenoisingStage
    step_index: int = 0  # the next step to run: DenoisingStage
    scheduler_state: SchedulerState | None = None  # history of a multistep scheduler: DenoisingStage
    skipping_state: SchedulerState | None = None  # what step skipping goes on from: DenoisingStage

    # decode
    frames: torch.Tensor | None = None  # uint8 [b, t, h, w, c] pixel frames: DecodingStage

    custom: dict[str, torch.Tensor | float | int | str] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return len(self.prompt) or len(self.seeds) or len(self.image or ())

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self.sampling.is_guided
