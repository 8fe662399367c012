"""Every model in layouts that share it among 2 and 4 processes, against itself in one: float32, all drawn anew."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.v1.attention import DistributedAttention
from fastvideo.v1.distributed.communication import all_gather
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, get_sp_group, init_world
from fastvideo.v1.distributed.sequence import TokenShards
from fastvideo.v1.layers.linear import MergedColumnParallelLinear
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.dits.hunyuan import HunyuanVideoTransformer3DModel
from fastvideo.v1.models.dits.wan import WanTransformer3DModel
from fastvideo.v1.models.encoders import CLIPTextModel, CLIPVisionModel, LlamaModel, UMT5EncoderModel
from fastvideo.v1.models.loader.component import build_model
from fastvideo.v1.models.loader.weights import assign_weights
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

TOLERANCE = 1e-5  # max|a - b| / max|b|
LAYOUTS = [
    ParallelLayout(data=2, tensor=2),
    ParallelLayout(data=2, ulysses=2),
    ParallelLayout(data=2, ring=2),
    ParallelLayout(tensor=4),
    ParallelLayout(ulysses=4),
    ParallelLayout(ring=4),
    ParallelLayout(ulysses=2, ring=2),
    ParallelLayout(ulysses=2, tensor=2),
    ParallelLayout(ring=2, tensor=2),
    ParallelLayout(cfg=2, ulysses=2),
]
WAN = dict(num_attention_heads=4, attention_head_dim=12, text_dim=20, freq_dim=24, ffn_dim=72, num_layers=2)
HUNYUAN = dict(
    num_attention_heads=4,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=32,
    pooled_projection_dim=16,
    rope_axes_dim=(4, 6, 6),
)
LLAMA = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8)
UMT5 = dict(vocab_size=61, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
CLIP = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)

Case = tuple[type[Model], dict[str, Any], tuple[Any, ...]]
Written = tuple[type[Model], dict[str, Any], dict[str, torch.Tensor], tuple[Any, ...], torch.Tensor]


def cases() -> dict[str, Case]:
    """Model, config and inputs; canvases of 1, 21 and 30 tokens, so that 2 ranks and 4 have to fill up."""
    timestep = torch.rand(2) * 1000
    token_ids, mask = torch.randint(61, (2, 9)), (torch.arange(9) < torch.tensor([[9], [5]])).long()
    wan = torch.randn(2, 16, 3, 4, 14), torch.randn(2, 7, 20), timestep
    image = torch.randn(1, 36, 1, 4, 6), torch.randn(1, 7, 20), timestep[:1], torch.randn(1, 5, 28)
    frames = torch.randn(2, 16, 3, 6, 10), torch.randn(2, 7, 20), torch.rand(2, 3) * 1000
    text = [torch.randn(2, 11, 32), torch.randn(2, 16)]
    hunyuan = torch.randn(2, 16, 3, 2, 14), text, timestep, None, torch.rand(2) * 8000
    with_image = dict(in_channels=36, image_dim=28, added_kv_proj_dim=48)
    return {
        "Wan": (WanTransformer3DModel, WAN, wan),
        "Wan, one token": (WanTransformer3DModel, WAN, (torch.randn(1, 16, 1, 2, 2), wan[1][:1], timestep[:1])),
        "Wan with an image": (WanTransformer3DModel, WAN | with_image, image),
        "Wan with a timestep a frame": (WanTransformer3DModel, WAN, frames),
        "HunyuanVideo": (HunyuanVideoTransformer3DModel, HUNYUAN, hunyuan),
        "UMT5": (UMT5EncoderModel, UMT5, (token_ids, mask)),
        "Llama, 4 key heads": (LlamaModel, LLAMA | {"num_key_value_heads": 4}, (token_ids, mask)),
        "Llama, 2 key heads": (LlamaModel, LLAMA | {"num_key_value_heads": 2, "attention_bias": True}, (token_ids,)),
        "CLIP text": (CLIPTextModel, CLIP | {"vocab_size": 61, "eos_token_id": 60}, (token_ids, mask)),
        "CLIP vision": (CLIPVisionModel, CLIP | {"image_size": 12, "patch_size": 4}, (torch.randn(2, 3, 12, 12),)),
    }


def random_model(model_class: type[Model], config: dict[str, Any]) -> Model:
    model = build_model(model_class, config, torch.device("cpu"), torch.float32)
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
        parameter.copy_(scale * torch.randn_like(parameter) + ("norm" in name and parameter.ndim < 2))
    return model


def checkpoint_of(model: Model) -> dict[str, torch.Tensor]:
    """The weights of a model that is whole, merged ones taken apart, under names that its loader knows."""
    checkpoint = {}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        parent, _, layer = module.rpartition(".")
        parts = type(model).packed_modules.get(layer)
        if parts is None:
            checkpoint[name] = parameter.data
            continue
        linear = model.get_submodule(module)
        sizes = linear.part_sizes if isinstance(linear, MergedColumnParallelLinear) else [1] * len(parts)
        for part, piece in zip(parts, parameter.data.split(sizes), strict=True):
            whole = piece if isinstance(linear, MergedColumnParallelLinear) else piece.squeeze(0)
            checkpoint[f"{parent}.{part}.{leaf}"] = whole
    return checkpoint


def output(model: Model, inputs: tuple[Any, ...]) -> torch.Tensor:
    out = model(*inputs)
    return out if isinstance(out, torch.Tensor) else torch.cat([part.flatten() for part in out])


def check(rank: int, layout: ParallelLayout, written: dict[str, Written]) -> dict[str, float]:
    """The error of each case on this rank."""
    errors = {}
    for name, (model_class, config, checkpoint, inputs, expected) in written.items():
        model = build_model(model_class, config, torch.device("cpu"), torch.float32)
        assign_weights(model, ((name, key, tensor) for key, tensor in checkpoint.items()), name)
        errors[name] = ((output(model, inputs) - expected).abs().max() / expected.abs().max()).item()
    return errors


def check_replicated_tokens(seed: int) -> None:
    """What attention gives the tokens that all ranks hold is the same on all, to the byte."""
    group, replicated = get_sp_group(), torch.Generator().manual_seed(seed)
    part, rest = torch.randn(3, 1, 6, 4, 16), torch.randn(3, 1, 5, 4, 16, generator=replicated)
    attention = DistributedAttention(num_heads=4, head_size=16)
    tokens = TokenShards(6 * group.size, num_replicated=5)
    out = attention(*torch.cat((part, rest), dim=2), tokens)[:, -5:]
    first, *others = all_gather(out, 0, group)
    assert all(torch.equal(first, other) for other in others)


def check_layouts(rank: int, path: Path, seed: int) -> None:
    written = torch.load(path, weights_only=False)
    with torch.inference_mode():
        for layout in LAYOUTS:
            init_world(layout, "cpu", TIMEOUT)
            errors = check(rank, layout, written)
            check_replicated_tokens(seed)
            close_world()
            wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
            assert not wrong, (astuple(layout), wrong)


@pytest.mark.slow
def test_every_model_in_every_layout_agrees_with_one_process(tmp_path, fresh_seed):
    written = {}
    with torch.inference_mode():
        for name, (model_class, config, inputs) in cases().items():
            model = random_model(model_class, config)
            written[name] = (model_class, config, checkpoint_of(model), inputs, output(model, inputs))
    torch.save(written, tmp_path / "cases.pt")
    run_processes(4, check_layouts, tmp_path / "cases.pt", fresh_seed)


def build_with_too_few_heads(rank: int) -> None:
    config = WAN | {"num_attention_heads": 3}
    for axis, message in {
        "ulysses": "num_heads=3 must be divisible by the ulysses size 2 .* nearest: ulysses size 1",
        "tensor": "must be divisible by the tensor size 2 of layout .* ulysses=1 x tensor=2",
    }.items():
        init_world(ParallelLayout(**{"data": 2, axis: 2}), "cpu", TIMEOUT)
        with pytest.raises(ValueError, match=message):
            build_model(WanTransformer3DModel, config, torch.device("cpu"), torch.float32)
        close_world()


@pytest.mark.slow
def test_heads_that_do_not_divide_are_refused_with_the_nearest_size():
    run_processes(4, build_with_too_few_heads)
