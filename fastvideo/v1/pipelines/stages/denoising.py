"""The loop in which nearly all time is spent."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fastvideo.v1.attention.strategy import TileStrategy, load_strategy
from fastvideo.v1.distributed.communication import all_gather
from fastvideo.v1.distributed.parallel_state import get_cfg_group
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import get_forward_context
from fastvideo.v1.models.dits.kept_states import KeptStates
from fastvideo.v1.models.swap import ModelSwap
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.pipelines.stages.step_skipping import step_skipping


class Condition(NamedTuple):
    """What one call of the transformer is conditioned on, besides the timestep; ``number`` is 1 for what to avoid."""

    number: int
    text: torch.Tensor | list[torch.Tensor]
    image: torch.Tensor | None
    guidance: torch.Tensor | None


class Expert(NamedTuple):
    """Which transformer does a step, and how strongly it is guided."""

    transformer: Any
    guidance_scale: float


class DenoisingStage(PipelineStage):
    """Noise to latents, with classifier-free guidance (arXiv 2207.12598) if the request asks for it.

    Latents and the scheduler's mathematics are float32; the transformer sees its own dtype. Nothing in the loop waits
    for the device, unless steps may be skipped (:mod:`fastvideo.v1.models.dits.step_cache`). A batch with
    ``scheduler_state`` goes on at its ``step_index``.

    ``transformer_2``, if there is one, does the steps at timesteps below ``boundary``. ``image_latents`` of a batch are
    further channels of what the transformer sees, or with ``holds_first_frames`` the first latent frames themselves, at
    timestep 0, which stay as they are.
    """

    phase = Phase.DENOISE
    version = 2

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        transformer_2: Any = None,
        boundary: float = 0.0,
        holds_first_frames: bool = False,
    ) -> None:
        self.transformer = transformer
        self.scheduler = scheduler
        self.transformer_2 = transformer_2
        self.boundary = boundary
        self.holds_first_frames = holds_first_frames
        self._swap: ModelSwap | None = None
        self._strategy: TileStrategy | None = None

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        assert batch.timesteps is not None and batch.latents is not None, "timesteps and latents are prepared first"
        if batch.prompt_embeds is None:
            raise ValueError("prompt_embeds is missing; run the encode phase first, or load what it stored")
        if batch.do_classifier_free_guidance and batch.negative_prompt_embeds is None:
            raise ValueError(
                f"guidance_scale={batch.sampling.guidance_scale} needs negative_prompt_embeds; encode the negative "
                "prompt, or set guidance_scale to 1"
            )
        if batch.sampling.guidance_scale_2 is not None and self.transformer_2 is None:
            scale = batch.sampling.guidance_scale_2
            raise ValueError(
                f"guidance_scale_2={scale} is for a model of two experts; this one has guidance_scale alone"
            )

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.timesteps is not None and batch.latents is not None
        context = get_forward_context()
        branches, experts = self._branches(batch), self._experts(batch)
        if fastvideo_args.sliding_tile_strategy is not None:
            context.tile_strategy = self._tile_strategy(fastvideo_args.sliding_tile_strategy, len(batch.timesteps))
            context.token_grid = self.transformer.token_grid(batch.latents)
        if batch.image_latents is not None:
            batch.image_latents = batch.image_latents.to(batch.latents.device)
        if self._swap is None and fastvideo_args.expert_offload and self.transformer_2 is not None:
            self._swap = ModelSwap([self.transformer, self.transformer_2], batch.latents.device)
        if batch.scheduler_state is not None:
            self.scheduler.load_state_dict(batch.scheduler_state)
        transformers = [expert.transformer for expert in experts]
        with (
            step_skipping(fastvideo_args, transformers, len(branches)) as skipping,
            _keeping_states(transformers, _own(branches)),
        ):
            if skipping is not None and batch.skipping_state is not None:
                for index, latents in skipping.restore(batch.skipping_state, batch.latents.device):
                    self._predict_step(replace(batch, latents=latents), index, experts[index], branches)
            for index in range(batch.step_index, len(batch.timesteps)):
                if skipping is not None:
                    skipping.begin(index, batch.latents)
                noise = self._predict_step(batch, index, experts[index], branches)
                batch.latents = self.scheduler.step(noise, index, batch.latents)
                batch.step_index = index + 1
                if context.on_step is not None:
                    batch.scheduler_state = self.scheduler.state_dict()
                    batch.skipping_state = None if skipping is None else skipping.state_dict()
                    context.on_step(batch)
        batch.latents = self._held(batch)
        return batch

    def _predict_step(self, batch: ForwardBatch, index: int, expert: Expert, branches: list[Condition]) -> torch.Tensor:
        """The guided flow at step ``index``, float32 ``[b, c, t, h, w]``."""
        assert batch.timesteps is not None
        get_forward_context().step_index = index
        if self._swap is not None:
            self._swap.bring(expert.transformer)
        latents, timestep = self._seen(batch, batch.timesteps[index])
        return self._predict(expert, latents.to(self.transformer.dtype), timestep, branches)

    def verify_output(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        assert batch.latents is not None
        if not torch.isfinite(batch.latents).all():
            raise FloatingPointError("denoising gave NaN or infinite latents; try float32, or another seed or guidance")

    def _experts(self, batch: ForwardBatch) -> list[Expert]:
        """Who does each step; decided here, so that the loop need not ask the device for a timestep."""
        assert batch.timesteps is not None
        sampling = batch.sampling
        first = Expert(self.transformer, sampling.guidance_scale)
        if self.transformer_2 is None:
            return [first] * len(batch.timesteps)
        scale = sampling.guidance_scale if sampling.guidance_scale_2 is None else sampling.guidance_scale_2
        second = Expert(self.transformer_2, scale)
        return [first if timestep >= self.boundary else second for timestep in batch.timesteps.tolist()]

    def _tile_strategy(self, uri: str, num_steps: int) -> TileStrategy:
        """The strategy of sliding tile attention, read once; it must be for as many steps as the request has."""
        if self._strategy is None:
            self._strategy = load_strategy(uri)
        self._strategy.check_steps(num_steps)
        return self._strategy

    def _seen(self, batch: ForwardBatch, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the transformer sees, float32 ``[b, c, t, h, w]``, and when: ``[b]``, or ``[b, t]`` for each frame."""
        assert batch.latents is not None
        latents, image = batch.latents, batch.image_latents
        timestep = timestep.expand(len(latents))
        if image is None:
            return latents, timestep
        if not self.holds_first_frames:
            return torch.cat((latents, image), dim=1), timestep
        timestep = timestep[:, None].repeat(1, latents.shape[2])
        timestep[:, : image.shape[2]] = 0
        return self._held(batch), timestep

    def _held(self, batch: ForwardBatch) -> torch.Tensor:
        """The latents, the first frames of them those of the image if they are held."""
        assert batch.latents is not None
        latents, image = batch.latents, batch.image_latents
        if image is None or not self.holds_first_frames:
            return latents
        return torch.cat((image, latents[:, :, image.shape[2] :]), dim=2)

    def _predict(
        self, expert: Expert, latents: torch.Tensor, timestep: torch.Tensor, branches: list[Condition]
    ) -> torch.Tensor:
        """The guided flow, float32 ``[b, c, t, h, w]``."""
        expert.transformer.kept_states.begin_step(expert.transformer, latents, timestep)
        flows = []
        for branch in _own(branches):
            get_forward_context().branch_index = branch.number
            flow = expert.transformer(latents, branch.text, timestep, branch.image, branch.guidance)
            flows.append(flow.float())
        if len(branches) == 1:
            return flows[0]
        conditional, unconditional = all_gather(torch.stack(flows), dim=0, group=get_cfg_group())
        return unconditional + expert.guidance_scale * (conditional - unconditional)

    def _branches(self, batch: ForwardBatch) -> list[Condition]:
        """What the transformer is to follow, then what it is to avoid if the request is guided."""
        assert batch.latents is not None
        device, dtype = batch.latents.device, self.transformer.dtype
        guidance = None
        if batch.sampling.guidance_mode == "embedded":
            # In the model's own dtype, as its authors and diffusers have it: 6016 for a scale of 6 in bfloat16.
            scale = batch.sampling.guidance_scale
            guidance = torch.full((len(batch.latents),), scale, dtype=dtype, device=device) * 1000.0
        image = None if batch.image_embeds is None else batch.image_embeds.to(device, dtype)
        prefixes = ("", "negative_") if batch.do_classifier_free_guidance else ("",)
        return [
            Condition(number, self._text(batch, prefix, device, dtype), image, guidance)
            for number, prefix in enumerate(prefixes)
        ]

    def _text(
        self, batch: ForwardBatch, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor | list[torch.Tensor]:
        """Text embeddings as this transformer takes them, with those of a second, pooling encoder if there is one."""
        embeds, mask = getattr(batch, f"{prefix}prompt_embeds"), getattr(batch, f"{prefix}prompt_mask")
        if not self.transformer.attends_text_padding and mask is not None:
            lengths = mask.sum(dim=1).unique().tolist()
            if len(lengths) > 1:
                raise ValueError(
                    f"texts of {', '.join(map(str, lengths))} tokens cannot share a batch of this model; denoise "
                    "samples one at a time"
                )
            embeds = embeds[:, : lengths[0]]
        pooled = getattr(batch, f"{prefix}pooled_prompt_embeds")
        text = embeds.to(device, dtype)
        return text if pooled is None else [text, pooled.to(device, dtype)]


def _own(branches: list[Condition]) -> list[Condition]:
    """Those that this process computes; without guidance both halves of the cfg group do the same."""
    group = get_cfg_group()
    return branches[group.rank :: group.size] or branches


@contextmanager
def _keeping_states(transformers: Sequence[Any], branches: list[Condition]) -> Iterator[None]:
    """Lets the transformers of a batch keep what stays the same over its steps, and within a step over ``branches``.

    A list of tensors is for models whose texts take part in every layer: of them there is nothing to keep.
    """
    constants = [
        tensor for branch in branches for tensor in (branch.text, branch.image) if isinstance(tensor, torch.Tensor)
    ]
    kept, models = KeptStates(constants, len(branches)), list(dict.fromkeys(transformers))
    for model in models:
        model.kept_states = kept
    try:
        yield
    finally:
        for model in models:
            del model.kept_states
