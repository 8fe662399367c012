"""Step skipping through the whole pipeline: what it leaves out, what that costs, and how a loop is resumed."""

import json
from collections import Counter
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.distributed.parallel_state import close_world, init_world
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.models.dits.wan import WanTransformer3DModel
from fastvideo.v1.models.schedulers.base import SchedulerState
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.registry import build_pipeline
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

PROMPT = "a red circle moves left on a black background"
# Of `fastvideo fit-step-skipping` for the embedded model, four prompts at 20 steps.
COEFFICIENTS = (-6289.789995582375, 1456.0354815383323, -81.34627214888131, 4.0142330323111635, 0.010261210548011657)
HUNYUAN_CANVAS = {"height": 48, "width": 48, "num_frames": 1}  # 9 tokens, so that 2 ranks have to fill up
EVER = 1e9  # a threshold that no change reaches


@pytest.fixture(scope="module")
def rule(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rules") / "rule.json"
    file.write_text(json.dumps({"coefficients": COEFFICIENTS, "first_steps": 1, "last_steps": 1}))
    return str(file)


@pytest.fixture(scope="module")
def relative_rule(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Takes the distance itself for the change: for models whose weights are random."""
    file = tmp_path_factory.mktemp("rules") / "relative.json"
    file.write_text(json.dumps({"coefficients": [1.0, 0.0], "first_steps": 1, "last_steps": 0}))
    return str(file)


def generator_of(model: str = EMBEDDED_MODEL, **args) -> VideoGenerator:
    return VideoGenerator.from_pretrained(model, device="cpu", **args)


def count_blocks(generator: VideoGenerator, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of each transformer's first block from now on."""
    calls: Counter[str] = Counter()
    for name in ("transformer", "transformer_2"):
        if (model := generator.executor.worker.pipeline.modules.get(name)) is not None:
            model.blocks[0].register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def psnr(frames: torch.Tensor, exact: torch.Tensor) -> float:
    return (10 * torch.log10(255**2 / (frames.double() - exact.double()).square().mean())).item()


def test_a_threshold_of_zero_makes_the_exact_video(rule):
    request = {"num_inference_steps": 4, "seed": torch.seed() % 2**32}
    exact = generator_of().generate_video(PROMPT, **request).frames
    frames = generator_of(step_skip_threshold=0.0, step_skip_rule=rule).generate_video(PROMPT, **request).frames
    assert torch.equal(frames, exact)


def test_first_and_last_steps_alone_are_computed_if_no_change_counts(rule, monkeypatch):
    generator = generator_of(step_skip_threshold=EVER, step_skip_rule=rule)
    calls = count_blocks(generator, monkeypatch)
    generator.generate_video(PROMPT, num_inference_steps=6)
    assert calls == {"transformer": 2 * 2}, "two steps of two branches"
    assert generator.executor.worker.pipeline.get_module("transformer").step_cache is None


def test_the_error_grows_with_the_threshold_and_is_bounded(rule, monkeypatch):
    request = {"num_inference_steps": 20, "seed": 100}
    exact = generator_of().generate_video(PROMPT, **request).frames
    quality, computed = [], []
    for threshold in (0.1, 0.2, 1.0):
        generator = generator_of(step_skip_threshold=threshold, step_skip_rule=rule)
        calls = count_blocks(generator, monkeypatch)
        quality.append(psnr(generator.generate_video(PROMPT, **request).frames, exact))
        computed.append(calls["transformer"])
    assert quality == sorted(quality, reverse=True) and quality[0] > quality[-1] + 3
    assert quality[0] > 24
    assert computed == sorted(computed, reverse=True) and 40 > computed[0] > computed[-1]


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_denoising_resumes_bit_for_bit_at_every_step(family, rule, relative_rule, tiny_hunyuan):
    steps = 7
    if family == "wan":
        sampling, model, file = {"num_inference_steps": steps}, EMBEDDED_MODEL, rule
    else:
        sampling, model, file = HUNYUAN_CANVAS | {"num_inference_steps": steps}, tiny_hunyuan, relative_rule
    args = FastVideoArgs(model_path=model, device="cpu", step_skip_threshold=0.3, step_skip_rule=file)
    pipeline = build_pipeline(args, [Phase.ENCODE, Phase.DENOISE])
    sampling = pipeline.sampling_defaults().with_overrides(**sampling)
    saved = []

    def save(batch: ForwardBatch) -> None:
        saved.append((batch.step_index, batch.latents, dict(batch.scheduler_state), dict(batch.skipping_state)))

    whole = pipeline.forward(ForwardBatch(prompt=[PROMPT], seeds=[5], sampling=sampling), ForwardContext(on_step=save))
    computed = {state["computed_at_0"] for _, _, _, state in saved}
    assert 1 < len(computed) < steps, "some steps are computed, some are not"
    fresh = build_pipeline(args, [Phase.ENCODE, Phase.DENOISE])
    for step, latents, state, skipping in saved[:-1]:
        batch = ForwardBatch(prompt=[PROMPT], seeds=[5], sampling=sampling)
        batch.step_index, batch.latents, batch.scheduler_state, batch.skipping_state = step, latents, state, skipping
        assert torch.equal(fresh.forward(batch).latents, whole.latents), f"resumed after step {step}"


def test_the_second_expert_reuses_nothing_of_the_first(variant_of_wan, tiny_transformer, rule, monkeypatch):
    model = variant_of_wan(
        {"transformer": tiny_transformer(), "transformer_2": tiny_transformer()}, boundary_ratio=0.875
    )
    generator = generator_of(model, step_skip_threshold=EVER, step_skip_rule=rule)
    calls = count_blocks(generator, monkeypatch)
    canvas = {"height": 32, "width": 48, "num_frames": 5}
    generator.generate_video(PROMPT, **canvas, guidance_scale=1.0, num_inference_steps=9)  # the first does three steps
    assert calls == {"transformer": 1, "transformer_2": 2}, "its first step, and the last"


def test_a_model_without_coefficients_is_refused():
    with pytest.raises(ValueError, match="no coefficients are published for this checkpoint"):
        generator_of(step_skip_threshold=0.1).generate_video(PROMPT, num_inference_steps=2)


def test_a_model_that_cannot_skip_is_refused(rule, monkeypatch):
    monkeypatch.setattr(WanTransformer3DModel, "skips_steps", False)
    with pytest.raises(ValueError, match="WanTransformer3DModel cannot skip steps; leave step_skip_threshold empty"):
        generator_of(step_skip_threshold=0.1, step_skip_rule=rule).generate_video(PROMPT, num_inference_steps=2)


def test_settings_must_make_sense():
    with pytest.raises(ValueError, match="is for step_skip_threshold; set both or neither"):
        FastVideoArgs(step_skip_rule="rule.json")
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            FastVideoArgs(step_skip_threshold=threshold)
    for way in ({"layer_offload": True}, {"shard_weights": True, "num_gpus": 2, "cfg_size": 2}):
        with pytest.raises(ValueError, match=r"=True and step_skip_threshold=0\.1 exclude each other"):
            FastVideoArgs(step_skip_threshold=0.1, **way)


Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], torch.Tensor, list[SchedulerState]]


def denoise(args: dict[str, Any], **fields: Any) -> tuple[torch.Tensor, list[SchedulerState], dict[str, Any]]:
    """The latents, the state of skipping after each step, and the batch's own state after the fourth."""
    states: list[SchedulerState] = []
    saved: dict[str, Any] = {}

    def see(batch: ForwardBatch) -> None:
        states.append(dict(batch.skipping_state))
        if batch.step_index == 4:
            names = ("step_index", "latents", "scheduler_state", "skipping_state")
            saved.update({name: getattr(batch, name) for name in names})

    pipeline = build_pipeline(FastVideoArgs(**args), [Phase.DENOISE])
    return pipeline.forward(ForwardBatch(**fields), ForwardContext(on_step=see)).latents, states, saved


def case_of(model: str, rule: str, **sampling) -> Case:
    args = {"model_path": model, "device": "cpu", "step_skip_threshold": 0.3, "step_skip_rule": rule}
    pipeline = build_pipeline(FastVideoArgs(**args), [Phase.ENCODE])
    request = pipeline.sampling_defaults().with_overrides(num_inference_steps=6, **sampling)
    batch = pipeline.forward(ForwardBatch(prompt=[PROMPT], seeds=[5], sampling=request))
    fields = {name: value for name, value in vars(batch).items() if name in {"prompt", "seeds", "sampling"}}
    fields |= {name: value for name, value in vars(batch).items() if "prompt_" in name}
    latents, states, saved = denoise(args, **fields)
    return args, fields, saved, latents, states


def test_every_layout_skips_alike_and_goes_on_from_anothers_state(rule, relative_rule, tiny_hunyuan):
    wan, hunyuan = case_of(EMBEDDED_MODEL, rule), case_of(tiny_hunyuan, relative_rule, **HUNYUAN_CANVAS)
    ring = {"sp_size": 2, "ring_size": 2}
    run_processes(2, _skip_in_layouts, [({"cfg_size": 2}, wan), (ring, wan), ({"sp_size": 2}, hunyuan)])


def _skip_in_layouts(rank: int, cases: list[tuple[dict[str, int], Case]]) -> None:
    for sizes, (args, fields, saved, expected, states) in cases:
        args = {**args, **sizes, "num_gpus": 2}
        init_world(FastVideoArgs(**args).layout, "cpu", TIMEOUT)
        latents, mine, _ = denoise(args, **fields)
        torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3, msg=f"{sizes}")
        for state, other in zip(mine, states, strict=True):
            assert state.keys() == other.keys(), f"{sizes}: the same steps are computed"
            for name in state:
                assert name.startswith("latents") or state[name] == pytest.approx(other[name], abs=1e-3), sizes
        latents, _, _ = denoise(args, **fields, **saved)
        torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3, msg=f"{sizes}, resumed")
        close_world()
