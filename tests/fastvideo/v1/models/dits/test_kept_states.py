"""What is kept while a batch is denoised: the same bytes with less work, whoever calls and wherever the weights are."""

from collections import Counter

import pytest
import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext, set_forward_context
from fastvideo.v1.models.dits.kept_states import KeptStates, NothingKept
from fastvideo.v1.models.dits.wan import WanTransformer3DModel
from fastvideo.v1.models.layer_offload import offload_blocks
from fastvideo.v1.models.loader.component import build_model
from fastvideo.v1.models.schedulers.unipc import UniPCMultistepScheduler
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages import DenoisingStage, denoising
from fastvideo.v1.sampling_params import SamplingParams
from tests.fastvideo.v1.models.travelling_models import draw_cases, draw_checkpoint, fill

CPU, META = torch.device("cpu"), torch.device("meta")
STEPS = 4


class MirroredTransformer(WanTransformer3DModel):
    """Calls its base twice, the second time with latents of its own making, and with a text of its own, too."""

    def forward(self, hidden_states, encoder_hidden_states, timestep, *others):
        flow = super().forward(hidden_states, encoder_hidden_states, timestep, *others)
        mirrored = super().forward(hidden_states.flip(-1), encoder_hidden_states.roll(1, 1), timestep, *others)
        return flow + mirrored.flip(-1)


def make_model(model_class=WanTransformer3DModel, offloaded=False, **sizes):
    model = build_model(model_class, draw_cases(0)["wan"].config | sizes, CPU, torch.float32)
    checkpoint = draw_checkpoint(model)
    if offloaded:
        model = build_model(model_class, draw_cases(0)["wan"].config | sizes, META, torch.float32)
        offload_blocks(model, CPU)
    fill(model, checkpoint)
    return model


def count_calls(*models):
    calls: Counter[str] = Counter()
    for model in models:
        for index, block in enumerate(model.blocks):
            for name, module in (("attention", block.attn1), ("texts", block.attn2.to_kv)):
                module.register_forward_hook(lambda *_, key=f"{name} {index}": calls.update([key]))
    return calls


def denoise(models, image=False, guided=True, resumed_at=None):
    """Latents of a batch, from a generator of its own; with ``resumed_at`` by two loops, the second after a restart."""
    source = torch.Generator().manual_seed(7)
    embeds, negative = (torch.randn(1, 5, 33, generator=source) for _ in range(2))
    latents = torch.randn(1, 16, 3, 4, 6, generator=source)
    image_embeds = torch.randn(1, 4, 11, generator=source) if image else None
    kept: list[ForwardBatch] = []

    def run(batch: ForwardBatch) -> ForwardBatch:
        scheduler = UniPCMultistepScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(STEPS, device=CPU)
        stage = DenoisingStage(models[0], scheduler, models[1] if len(models) > 1 else None, boundary=600.0)
        batch.timesteps = scheduler.timesteps

        def stop(state: ForwardBatch) -> None:
            if state.step_index == resumed_at and not kept:
                kept.append(make_batch(state.latents.clone(), state.step_index, state.scheduler_state))

        with torch.inference_mode(), set_forward_context(ForwardContext(on_step=stop)):
            return stage.forward(batch, FastVideoArgs(device="cpu"))

    def make_batch(latents: torch.Tensor, step_index: int = 0, state=None) -> ForwardBatch:
        return ForwardBatch(
            prompt=["a"],
            sampling=SamplingParams(guidance_scale=4.0 if guided else 1.0),
            prompt_embeds=embeds,
            negative_prompt_embeds=negative if guided else None,
            image_embeds=image_embeds,
            latents=latents,
            step_index=step_index,
            scheduler_state=state,
        )

    whole = run(make_batch(latents)).latents
    if resumed_at is None:
        return whole
    return run(kept[0]).latents


IMAGE = {"image_dim": 11, "added_kv_proj_dim": 48}


@pytest.mark.parametrize(
    ("sizes", "num_experts", "settings"),
    [
        ({}, 1, {}),
        ({}, 1, {"guided": False}),
        (IMAGE, 1, {"image": True}),
        ({}, 2, {}),
        ({}, 2, {"resumed_at": 3}),
        ({"offloaded": True}, 1, {}),
        ({"model_class": MirroredTransformer}, 1, {}),
    ],
    ids=["guided", "unguided", "image", "experts", "resumed", "offloaded", "called twice by a subclass"],
)
def test_latents_are_the_same_bytes_with_and_without(monkeypatch, sizes, num_experts, settings):
    models = [make_model(**sizes) for _ in range(num_experts)]
    kept = denoise(models, **settings)
    assert all(isinstance(model.kept_states, NothingKept) and not vars(model).get("kept_states") for model in models)
    monkeypatch.setattr(denoising, "KeptStates", lambda *_: NothingKept())
    plain = denoise(models, **settings | {"resumed_at": None})
    assert torch.isfinite(plain).all() and torch.equal(kept, plain)


@pytest.mark.parametrize(("guided", "attentions", "texts"), [(True, [4, 8, 8], 2), (False, [4, 4, 4], 1)])
def test_texts_are_projected_once_a_sample_and_the_first_attention_is_shared(guided, attentions, texts):
    model = make_model()
    calls = count_calls(model)
    denoise([model], guided=guided)
    assert [calls[f"attention {index}"] for index in range(3)] == attentions
    assert [calls[f"texts {index}"] for index in range(3)] == [texts] * 3


def test_each_expert_has_texts_of_its_own_and_gives_them_up_for_the_next():
    models = [make_model(), make_model()]
    calls = [count_calls(model) for model in models]
    denoise(models)
    assert [count["texts 0"] for count in calls] == [2, 2]
    kept = KeptStates([text := torch.ones(1)], 2)
    for owner in models:
        kept.begin_step(owner)
        kept.of_batch(owner, (text,), lambda: (torch.zeros(1),))
    assert [owner for owner, _ in kept._of_batch._results] == [models[1]]


def test_only_tensors_that_are_vouched_for_are_taken_for_the_same():
    text, latents = torch.ones(2), torch.ones(3)
    kept, made = KeptStates([text], 2), iter(range(100))
    make = lambda: (torch.tensor(next(made)),)  # noqa: E731
    kept.begin_step("model", latents)
    first = kept.of_batch("layer", (text, None), make)
    assert kept.of_batch("layer", (text, None), make) is first
    assert kept.of_batch("next", first, make) is kept.of_batch("next", first, make), "what is made of them is, too"
    assert kept.of_batch("layer", (text.clone(), None), make) is not first
    assert kept.of_batch("other", (text, None), make) is not first
    shared = kept.of_step("layer", (latents,), make)
    assert kept.of_step("layer", (latents,), make) is shared
    assert kept.of_step("layer", (latents,), make) is not shared, "both branches have had it"
    kept.begin_step("model", latents)
    assert kept.of_step("layer", (latents.clone(),), make) is not kept.of_step("layer", (latents,), make)
