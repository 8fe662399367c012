"""LoRA adapters against diffusers' transformer with the same adapter merged by hand in float64."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_musubi_wan_lora_to_diffusers as from_kohya
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers as from_original
from safetensors.torch import save_file

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.layers.linear import LinearBase
from fastvideo.v1.models.dits.hunyuan import HunyuanVideoTransformer3DModel
from fastvideo.v1.models.dits.wan import WanTransformer3DModel, WanTransformerConfig
from fastvideo.v1.models.loader.adapter import _place, read_adapter, set_adapter
from fastvideo.v1.models.loader.component import build_model, load_component
from fastvideo.v1.models.loader.repository import ModelRepository

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # max|a - b| / max|b| in float32

ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}


@pytest.fixture
def reference(tiny_wan: str) -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel.from_pretrained(tiny_wan, subfolder="transformer").eval()


@pytest.fixture
def adapter(reference: diffusers.WanTransformer3DModel) -> Tensors:
    return draw_adapter(reference)


def draw_adapter(reference: torch.nn.Module) -> Tensors:
    """Pairs of rank 2 to 4 for every linear layer, in the layout of diffusers; every other one has its alpha."""
    tensors: Tensors = {}
    linears = [(name, m) for name, m in reference.named_modules() if isinstance(m, torch.nn.Linear)]
    for number, (name, linear) in enumerate(linears):
        rank = 2 + number % 3
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, linear.in_features) / rank
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(linear.out_features, rank) / 8
        if number % 2 and "blocks" in name:
            tensors[f"transformer.{name}.alpha"] = torch.tensor(1.0 + number % 5)
    return tensors


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(tensors: Tensors, name: str = "adapter.safetensors", **metadata: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata or None)
        return str(path)

    return write


def in_original_layout(adapter: Tensors) -> Tensors:
    renamed = {}
    for key, tensor in adapter.items():
        name = key.removeprefix("transformer.").replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        for new, old in ORIGINAL.items():
            name = name.replace(new, old)
        renamed[f"diffusion_model.{name}"] = tensor
    return renamed


def in_kohya_layout(adapter: Tensors) -> Tensors:
    renamed = {}
    for key, tensor in in_original_layout(adapter).items():
        layer, role = re.fullmatch(r"diffusion_model\.(.*?)\.(lora_.*|alpha)", key).groups()
        renamed[f"lora_unet_{layer.replace('.', '_')}.{role}"] = tensor
    return renamed


def in_peft_layout(adapter: Tensors) -> Tensors:
    renamed = {key.replace("transformer.", "base_model.model.", 1): tensor for key, tensor in adapter.items()}
    return {key.replace(".weight", ".default.weight"): tensor for key, tensor in renamed.items()}


# How a file has its names, and how diffusers takes them: each pair by its own names, alpha multiplied in.
LAYOUTS = {
    "diffusers": (dict, dict),
    "original": (in_original_layout, from_original),
    "kohya": (in_kohya_layout, from_kohya),
    "peft": (in_peft_layout, None),
}


def merge_by_hand(model: torch.nn.Module, adapter: Tensors, scale: float) -> None:
    """W + scale * alpha / r * B A in float64, for an adapter in the layout of diffusers."""
    for key in [key for key in adapter if key.endswith(".lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight")
        down, up = adapter[key].double(), adapter[f"{name}.lora_B.weight"].double()
        alpha = adapter.get(f"{name}.alpha", torch.tensor(float(len(down)))).item()
        weight = model.get_submodule(name.removeprefix("transformer.")).weight
        weight.data = (weight.double() + scale * alpha / len(down) * up @ down).to(weight.dtype)


def load(model: str, **args) -> WanTransformer3DModel:
    args = FastVideoArgs(precision="float32", device="cpu", **args)
    return load_component(ModelRepository(model), "transformer", "WanTransformer3DModel", args)


def draw_inputs(b: int = 2) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 16, 3, 4, 6), torch.randn(b, 7, 40), torch.randint(0, 1000, (b,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_matches_diffusers_with_the_adapter_merged_by_hand(
    tiny_wan, reference, adapter, write, max_error, layout
):
    latents, text, timestep = draw_inputs()
    plain = reference(latents, timestep, text, return_dict=False)[0]
    if layout == "kohya":  # of which diffusers takes the blocks alone, and those with alpha
        adapter = {key: tensor for key, tensor in adapter.items() if ".blocks." in key}
        adapter |= {key.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for key in adapter if "lora_A" in key}
    rename, taken = LAYOUTS[layout]
    renamed = rename(adapter)
    assert len(renamed) == len(adapter) and (layout == "diffusers" or not set(renamed) & set(adapter))
    ours = load(tiny_wan, lora_path=write(renamed), lora_scale=0.7)
    merge_by_hand(reference, adapter if taken is None else taken(dict(renamed)), 0.7)
    expected = reference(latents, timestep, text, return_dict=False)[0]
    assert max_error(ours(latents, text, timestep), expected) < TOLERANCE
    assert max_error(plain, expected) > 1e-2, "the adapter does something"


def test_kept_apart_equals_merged_and_can_be_changed_and_taken_off(tiny_wan, adapter, write, max_error):
    latents, text, timestep = draw_inputs()
    path, model = write(adapter), load(tiny_wan)
    plain = model(latents, text, timestep)
    for scale in (1.0, 0.3):
        set_adapter(model, path, scale, CPU)
        merged = load(tiny_wan, lora_path=path, lora_scale=scale)
        assert max_error(model(latents, text, timestep), merged(latents, text, timestep)) < 1e-5
    set_adapter(model, None, 1.0, CPU)
    assert torch.equal(model(latents, text, timestep), plain)


def test_hunyuan_video_takes_adapters_by_its_tables(write, load_weights, max_error):
    reference = diffusers.HunyuanVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    adapter = draw_adapter(reference)
    path = write(adapter)
    ours = build_model(HunyuanVideoTransformer3DModel, dict(reference.config), torch.device("cpu"), torch.float32)
    load_weights(ours, reference.state_dict())
    set_adapter(ours, path, 0.7, CPU)
    merge_by_hand(reference, adapter, 0.7)
    latents, text, pooled = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 5, 32), torch.randn(2, 16)
    timestep, guidance = torch.rand(2) * 1000, torch.rand(2) * 8000
    mask = torch.ones(2, 5, dtype=torch.long)
    expected = reference(latents, timestep, text, mask, pooled, guidance, return_dict=False)[0]
    assert max_error(ours(latents, [text, pooled], timestep, None, guidance), expected) < TOLERANCE
    for key in ("double_blocks.0.img_attn_qkv.lora_A.weight", "lora_unet_double_blocks_0_img_attn_qkv.alpha"):
        with pytest.raises(ValueError, match=rf"{key}' is no LoRA key of .*; the names of diffusers and PEFT are"):
            set_adapter(ours, write({key: torch.zeros(1)}), 1.0, CPU)


def test_whole_differences_are_merged(tiny_wan, reference, write, max_error):
    latents, text, timestep = draw_inputs()
    weight, norm, bias = torch.randn(40, 40) / 8, torch.randn(40) / 8, torch.randn(40)
    tables = torch.randn(1, 6, 40), torch.randn(1, 6, 40), torch.randn(1, 2, 40)
    tensors = {"blocks.1.self_attn.k.diff": weight, "blocks.0.norm3.diff": norm, "blocks.0.cross_attn.o.diff_b": bias}
    names = ("blocks.0.diff_m", "blocks.1.modulation.diff", "head.diff_m")
    tensors |= dict(zip(names, tables, strict=True))
    path = write({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()})
    reference.blocks[1].attn1.to_k.weight.data += 0.5 * weight
    reference.blocks[0].norm2.weight.data += 0.5 * norm
    reference.blocks[0].attn2.to_out[0].bias.data += 0.5 * bias
    for module, table in zip((*reference.blocks, reference), tables, strict=True):
        module.scale_shift_table.data += 0.5 * table
    ours = load(tiny_wan, lora_path=path, lora_scale=0.5)
    expected = reference(latents, timestep, text, return_dict=False)[0]
    assert max_error(ours(latents, text, timestep), expected) < TOLERANCE
    with pytest.raises(ValueError, match=r"is no pair for a linear layer; merge this adapter"):
        set_adapter(load(tiny_wan), path, 1.0, CPU)


def test_alpha_of_the_adapters_config_counts_where_a_layer_has_none(tiny_wan, write, tmp_path):
    pair = {"transformer.proj_out.lora_A.weight": torch.randn(4, 40), "transformer.proj_out.lora_B.weight": None}
    pair["transformer.proj_out.lora_B.weight"] = torch.randn(64, 4)
    model = load(tiny_wan)
    header = json.dumps({"transformer.lora_alpha": 8, "transformer.r": 4})
    (delta,) = read_adapter(model, write(pair, lora_adapter_metadata=header), 0.5).values()
    assert delta.strength == 0.5 * 8 / 4
    folder = write(pair, "peft/adapter_model.safetensors").rpartition("/")[0]
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": False}))
    for uri in (folder, f"{folder}/adapter_model.safetensors", f"file://{folder}"):
        (delta,) = read_adapter(model, uri, 1.0).values()
        assert delta.strength == 6 / 4
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    with pytest.raises(ValueError, match="use_rslora=True is not supported"):
        read_adapter(model, folder, 1.0)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "transformer.blocks.9.attn1.to_q.lora_A.weight",
            (2, 40),
            r"key 'transformer.blocks.9.* is no LoRA key of Wan",
        ),
        (
            "transformer_2.proj_out.lora_A.weight",
            (2, 40),
            "key 'transformer_2.* is no LoRA key of WanTransformer3DModel; the names of diffusers and PEFT, of its "
            "first publication and of kohya are read",
        ),
        ("transformer.proj_out.lora_B.bias", (64,), "'transformer.proj_out.lora_B.bias' is a bias beside a pair"),
        ("transformer.proj_out.dora_scale", (64,), "'transformer.proj_out.dora_scale' is no LoRA key"),
        ("transformer.proj_out.lora_A.weight", (2, 40), "lora_A.weight alone is no pair"),
        (
            "transformer.proj_out.diff",
            (3, 40),
            r"proj_out.weight: the adapter's .* makes \[3, 40\], the weight is \[64",
        ),
        (
            "diffusion_model.blocks.0.diff_m",
            (6, 40),
            r"scale_shift_table: the adapter's .*diff_m makes \[6, 40\], the weight is \[1, 6, 40\]",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_with_its_key(tiny_wan, write, key, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(tiny_wan, lora_path=write({key: torch.zeros(shape)}))
    assert "\n" not in str(caught.value)


TO_Q, TO_OUT = "transformer.blocks.1.attn1.to_q", "transformer.blocks.1.attn1.to_out.0"


@pytest.mark.parametrize(
    ("layer", "down", "up", "message"),
    [
        (TO_Q, (2, 41), (40, 2), r"makes \[40, 41\], the weight is \[40, 40\]"),
        (TO_Q, (2, 40), (41, 2), r"makes \[41, 40\], the weight is \[40, 40\]"),
        (TO_Q, (2, 40, 1), (40, 2), r"makes \[40, 40, 1\], the weight is \[40, 40\]"),
        (TO_OUT, (2, 41), (40, 2), r"makes \[40, 41\], the weight is \[40, 40\]"),
        (TO_OUT, (2, 40), (41, 2), r"makes \[41, 40\], the weight is \[40, 40\]"),
        (TO_OUT, (2, 40), (40, 3), r"shapes \[2, 40\] and \[40, 3\] of one pair must be \[r, i\] and \[o, r\]"),
        (TO_OUT, (0, 40), (40, 0), r"shapes \[0, 40\] and \[40, 0\] of one pair must be"),
        (TO_OUT, (40,), (40,), r"shapes \[40\] and \[40\] of one pair must be"),
    ],
)
@pytest.mark.parametrize("kept_apart", [False, True], ids=["merged", "kept apart"])
def test_a_pair_of_another_shape_is_one_line_and_changes_nothing(tiny_wan, write, layer, down, up, message, kept_apart):
    good = {"proj_out.lora_A.weight": torch.zeros(2, 40), "proj_out.lora_B.weight": torch.zeros(64, 2)}
    path = write(good | {f"{layer}.lora_A.weight": torch.ones(down), f"{layer}.lora_B.weight": torch.ones(up)})
    if not kept_apart:
        with pytest.raises(ValueError, match=rf"{layer}.* {message}"):
            load(tiny_wan, lora_path=path)
        return
    set_adapter(model := load(tiny_wan), write(good, "good.safetensors"), 1.0, CPU)
    before = {name: module.branch for name, module in model.named_modules() if isinstance(module, LinearBase)}
    with pytest.raises(ValueError, match=rf"^{path}: .*{layer}.* {message}") as caught:
        set_adapter(model, path, 1.0, CPU)
    assert "\n" not in str(caught.value)
    assert all(model.get_submodule(name).branch is branch for name, branch in before.items())


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"proj_out.alpha": torch.ones(2)}, {}, r"proj_out\.alpha must be one number, not \[1\.0, 1\.0\]"),
        ({}, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata is not valid JSON"),
        ({}, {"lora_adapter_metadata": "[1]"}, r"lora_adapter_metadata must be a JSON object, not '\[1\]'"),
        ({}, {"lora_adapter_metadata": '{"lora_alpha": "8"}'}, r"lora_alpha must be one number, not \['8'\]"),
        ({"proj_out.lora_up.weight": torch.zeros(64, 2)}, {}, r"lora_B.* and .*lora_up.* are one and the same"),
    ],
)
def test_a_broken_adapter_is_one_line_with_its_file(tiny_wan, write, tensors, metadata, message):
    pair = {"proj_out.lora_A.weight": torch.zeros(2, 40), "proj_out.lora_B.weight": torch.zeros(64, 2)}
    path = write(pair | tensors, **metadata)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as caught:
        read_adapter(load(tiny_wan), path, 1.0)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_named(tiny_wan, tmp_path):
    with pytest.raises(ValueError, match="has 0 safetensors files"):
        load(tiny_wan, lora_path=str(tmp_path / "nowhere.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load(tiny_wan, lora_path=str(tmp_path / "bad.safetensors"))


def test_merging_rounds_once_to_the_models_dtype(tiny_wan, adapter, write):
    path = write(adapter)
    exact = load(tiny_wan, lora_path=path)
    args = FastVideoArgs(precision="bfloat16", device="cpu", lora_path=path)
    rounded = load_component(ModelRepository(tiny_wan), "transformer", "WanTransformer3DModel", args)
    for (name, whole), half in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert torch.equal(whole.to(half.dtype), half), name


@pytest.mark.parametrize(
    "config",
    [dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), dict(image_dim=1280, added_kv_proj_dim=5120)],
    ids=["1.3B", "14B image-to-video"],
)
def test_every_linear_layer_of_the_full_size_model_has_its_place_in_every_layout(config):
    with torch.device("meta"):
        reference = diffusers.WanTransformer3DModel(**config)
        ours = WanTransformer3DModel(WanTransformerConfig.from_dict(dict(reference.config)))
    names = [name for name, module in reference.named_modules() if isinstance(module, torch.nn.Linear)]
    adapter = {f"transformer.{name}.lora_A.weight": torch.empty(0) for name in names}
    parameters = dict(ours.named_parameters())
    layouts = [rename(adapter) for rename, _ in LAYOUTS.values()]
    layouts.append([f"lora_unet_{name.replace('.', '_')}.lora_down.weight" for name in names])
    places, *others = [[_place(ours, parameters, key) for key in keys] for keys in layouts]
    assert all(other == places for other in others)
    assert None not in places and len(set(places)) == len(names)
