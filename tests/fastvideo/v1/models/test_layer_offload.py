"""Models whose blocks wait in host memory, against the same models whole on the device."""

from itertools import pairwise

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.layer_offload import offload_blocks
from fastvideo.v1.models.loader.component import build_model
from tests.fastvideo.v1.models.travelling_models import call, draw_cases, draw_checkpoint, fill

CPU, META = torch.device("cpu"), torch.device("meta")
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def pair(case, device: torch.device, dtype: torch.dtype):
    """The model whole on ``device``, and with its blocks in host memory; the same weights."""
    whole = build_model(case.model_class, case.config, device, dtype)
    checkpoint = draw_checkpoint(whole)
    fill(whole, checkpoint)
    offloaded = build_model(case.model_class, case.config, META, dtype)
    offload_blocks(offloaded, device)
    fill(offloaded, checkpoint, reverse=True)
    return whole, offloaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(draw_cases(0)))
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bytes_come_out(fresh_seed, device, name, dtype):
    case = draw_cases(fresh_seed)[name]
    whole, offloaded = pair(case, torch.device(device), dtype)
    expected = call(whole, case, device)
    assert torch.isfinite(expected).all() and expected.std() > 0
    for _ in range(3):
        assert torch.equal(call(offloaded, case, device), expected)


def test_weights_are_at_home_between_calls_and_two_blocks_on_the_device_during_one(fresh_seed):
    case = draw_cases(fresh_seed)["wan"]
    _, model = pair(case, CPU, torch.float32)
    blocks = model.blocks_in_order()
    at_home = [[parameter.data_ptr() for parameter in block.parameters()] for block in blocks]
    seen: list[int] = []
    for block, homes in zip(blocks, at_home, strict=True):
        weight, home = block.ffn.down.weight, block.ffn.down.weight.data_ptr()
        assert home in homes
        block.ffn.down.register_forward_pre_hook(lambda *_, weight=weight, home=home: seen.append(weight.data_ptr()))
    call(model, case)
    call(model, case)
    assert [[parameter.data_ptr() for parameter in block.parameters()] for block in blocks] == at_home
    assert len(seen) == 6 and len(set(seen)) == 2 and not set(seen) & {p for homes in at_home for p in homes}
    assert all(one != other for one, other in pairwise(seen)), "neighbours use both places"


def test_a_call_that_fails_leaves_the_next_one_right(fresh_seed):
    case = draw_cases(fresh_seed)["wan"]
    whole, model = pair(case, CPU, torch.float32)
    homes = [parameter.data_ptr() for parameter in model.parameters()]

    def fail(*_):
        raise RuntimeError("in the middle of a block")

    hook = model.blocks_in_order()[1].attn2.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle of a block"):
        call(model, case)
    hook.remove()
    assert [parameter.data_ptr() for parameter in model.parameters()] == homes
    assert torch.equal(call(model, case), call(whole, case))


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_a_generator_with_its_blocks_away_makes_the_same_video(request, model):
    path = request.getfixturevalue(model)
    canvas = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 5}
    frames = [
        VideoGenerator.from_pretrained(path, device="cpu", layer_offload=offload)
        .generate_video("a red circle", **canvas)
        .frames
        for offload in (False, True)
    ]
    assert torch.equal(*frames)


def test_an_adapter_beside_weights_that_travel_is_refused(tiny_wan):
    generator = VideoGenerator.from_pretrained(tiny_wan, device="cpu", layer_offload=True)
    with pytest.raises(ValueError, match=r"layer_offload.* can only be merged into them: lora_path='anything'"):
        generator.set_lora("anything")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_offload": True}, "layer_offload=True and expert_offload=True exclude each other"),
        ({"quantization": "fp8"}, "layer_offload=True and quantization='fp8' exclude each other"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FastVideoArgs(layer_offload=True, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_peak_is_below_the_weights(fresh_seed):
    """Twelve blocks of 1.3B's width, 1.1 GB; two of them and little else are on the device."""
    case = draw_cases(fresh_seed)["wan"]
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 12}
    model = build_model(case.model_class, case.config | sizes, META, torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    offload_blocks(model, torch.device("cuda"))
    for parameter in model.parameters():
        parameter.data.copy_(0.02 * torch.randn(parameter.shape, dtype=parameter.dtype))
    first, second = (call(model, case, "cuda") for _ in range(2))
    peak = torch.cuda.max_memory_allocated() - before
    whole = build_model(case.model_class, case.config | sizes, torch.device("cuda"), torch.bfloat16)
    for parameter, source in zip(whole.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(source.data)
    expected = call(whole, case, "cuda")
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert peak < 0.35 * weights, f"{peak / 2**20:.0f} MiB at the peak, {weights / 2**20:.0f} MiB of weights"
