"""LoRA adapters (arXiv 2106.09685): from a safetensors file to what each weight of a model gains.

Layouts are told apart by nothing but their names: that of diffusers and PEFT
(``transformer.blocks.0.attn1.to_q.lora_A.weight``, or ``.lora_A.default.weight``), and by the model's table
``original_keys`` that of its first publication (``diffusion_model.blocks.0.self_attn.q.lora_down.weight``) and kohya's
spelling of both (``lora_unet_blocks_0_self_attn_q.lora_down.weight``).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fastvideo.v1.layers.linear import LinearBase
from fastvideo.v1.layers.low_rank import LowRankBranch, WeightDelta
from fastvideo.v1.logger import init_logger
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.adapter_files import adapter_files
from fastvideo.v1.models.loader.repository import parse_object
from fastvideo.v1.models.loader.weights import Target, parameter_of

logger = init_logger(__name__)

_PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.")
_UNDERSCORED = "lora_unet_"  # kohya's, musubi-tuner's: what follows has underscores for dots
# What a key's end says of its tensor: the role, and the tensor of the layer that it changes.
_ROLES = {
    ".lora_A.weight": ("down", "weight"),
    ".lora_B.weight": ("up", "weight"),
    ".lora_A.default.weight": ("down", "weight"),
    ".lora_B.default.weight": ("up", "weight"),
    ".lora_down.weight": ("down", "weight"),
    ".lora_up.weight": ("up", "weight"),
    ".alpha": ("alpha", "weight"),
    ".modulation.diff": ("diff", "modulation"),
    ".diff": ("diff", "weight"),
    ".diff_b": ("diff", "bias"),
    ".diff_m": ("diff", "modulation"),  # LightX2V's, of step-distilled Wan
}


def read_adapter(model: Model, uri: str, scale: float) -> dict[Target, WeightDelta]:
    """What the adapter at ``uri``, a safetensors file or a folder with one, adds to each weight of ``model``.

    A pair's strength is ``scale * alpha / rank``; alpha is the layer's own, else that of the adapter's config, else the
    rank. Raises ``ValueError`` naming the key that ``model`` has no place for, or a pair that is not whole.
    """
    tensors, config = _read(uri)
    parameters = dict(model.named_parameters())
    found: dict[Target, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        place = _place(model, parameters, key)
        if place is None:
            raise ValueError(f"{uri}: key {key!r} {_refusal(model, key)}")
        role, target = place
        if role in found[target]:
            raise ValueError(f"{uri}: {found[target][role]} and {key} are one and the same; an adapter has one layout")
        found[target][role] = key
    return {target: _delta(uri, keys, tensors, config, scale) for target, keys in found.items()}


def set_adapter(model: Model, uri: str | None, scale: float, device: torch.device) -> None:
    """Puts the adapter at ``uri`` beside the weights of ``model``, in place of the one before; None takes it off.

    Nothing is merged: ``y = W x + scale * alpha / rank * B (A x)``. ``device`` is where the model works and the adapter
    stays, wherever the weights are meanwhile (``expert_offload``). Raises ``ValueError``, and changes nothing, if the
    adapter has more than pairs for linear layers, or if weights are quantized, sharded or offloaded by block.
    """
    if uri and model.weights_travel:
        raise ValueError(
            "the weights come to the device block by block (shard_weights, layer_offload), so an adapter can only be "
            f"merged into them: lora_path={uri!r}"
        )
    if uri and any(isinstance(module, LinearBase) and module.quantized is not None for module in model.modules()):
        raise ValueError(f"the weights are quantized, so an adapter can only be merged into them: lora_path={uri!r}")
    branches: dict[LinearBase, LowRankBranch] = {}
    for (name, part), delta in (read_adapter(model, uri, scale) if uri else {}).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if delta.down is None or not isinstance(layer, LinearBase):
            raise ValueError(f"{uri}: {delta.key} is no pair for a linear layer; merge this adapter: lora_path={uri!r}")
        try:
            branch = layer.low_rank_branch(delta, part)
        except ValueError as error:
            raise ValueError(f"{uri}: {error}") from None
        branches[layer] = branch.to(device).beside(branches.get(layer))
    for module in model.modules():
        if isinstance(module, LinearBase):
            module.branch = branches.get(module)


def tell_of_one_expert(uri: str) -> None:
    """Says of a model with two experts what becomes of the adapter at ``uri``."""
    logger.info("adapter %s changes the expert of high noise (transformer) alone; transformer_2 stays as it is", uri)


def _place(model: Model, parameters: Mapping[str, Any], key: str) -> tuple[str, Target] | None:
    """The role of the tensor ``key``, and what it changes."""
    for ending, (role, tensor) in _ROLES.items():
        if key.endswith(ending):
            name = key.removesuffix(ending)
            if name.startswith(_UNDERSCORED):
                name = _dotted(model, name.removeprefix(_UNDERSCORED))
            else:
                name = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
            name = f"{name}.{tensor}"
            for old, new in model.original_keys.items():
                name = name.replace(old, new)
            target = parameter_of(model, parameters, name)
            return None if target is None else (role, target)
    return None


def _dotted(model: Model, name: str) -> str:
    """``name`` with dots for underscores, but for those within a name of the table ``original_keys``."""
    known = ".".join((*model.original_keys, *model.original_keys.values())).split(".")
    kept = "|".join(sorted({part for part in known if "_" in part}, key=len, reverse=True))
    return re.sub(rf"(?<![^_])({kept})(?![^_])|_", lambda found: found[1] or ".", name)


def _refusal(model: Model, key: str) -> str:
    """Why the adapter's ``key`` is not read."""
    if key.endswith((".lora_B.bias", ".lora_B.default.bias")):
        return "is a bias beside a pair (lora_bias), which is not supported; merge the adapter where it was trained"
    layouts = "diffusers and PEFT" + (", of its first publication and of kohya" if model.original_keys else "")
    return f"is no LoRA key of {type(model).__name__}; the names of {layouts} are read"


def _delta(
    uri: str, keys: Mapping[str, str], tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], scale: float
) -> WeightDelta:
    first = next(iter(keys.values()))
    if set(keys) == {"diff"}:
        return WeightDelta(first, tensors[keys["diff"]], None, scale)
    if set(keys) - {"alpha"} != {"down", "up"}:
        raise ValueError(f"{uri}: {', '.join(keys.values())} alone is no pair; a layer has lora_A and lora_B, or diff")
    down, up = tensors[keys["down"]], tensors[keys["up"]]
    if down.dim() < 2 or up.dim() < 2 or up.shape[1:].numel() != len(down) or not len(down):
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise ValueError(f"{uri}: {first}: shapes {shapes} of one pair must be [r, i] and [o, r]")
    rank = len(down)
    alpha = tensors[keys["alpha"]].flatten().tolist() if "alpha" in keys else [config.get("lora_alpha") or rank]
    if len(alpha) != 1 or not isinstance(alpha[0], int | float):
        raise ValueError(f"{uri}: {keys.get('alpha', 'lora_alpha')} must be one number, not {alpha}")
    return WeightDelta(first, up, down, scale * alpha[0] / rank)


def _read(uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an adapter and its PEFT config: of the file's header, or ``adapter_config.json`` beside it."""
    fs, weights, config_path = adapter_files(uri)
    config = parse_object(fs.cat_file(config_path), config_path) if config_path else {}
    with TemporaryDirectory(prefix="fastvideo-adapter-") as folder:
        path = Path(folder) / "adapter.safetensors"
        fs.get_file(weights, str(path))
        tensors, header = _open(path, uri)
    if packed := header.get("lora_adapter_metadata"):
        packed_config = parse_object(packed, f"{uri}: lora_adapter_metadata")
        config |= {key.removeprefix("transformer."): value for key, value in packed_config.items()}
    for key in ("use_rslora", "use_dora", "alpha_pattern"):
        if config.get(key):
            raise ValueError(f"{uri}: {key}={config[key]!r} is not supported; merge the adapter where it was trained")
    return tensors, config


def _open(path: Path, uri: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{uri} is truncated or damaged: {error}") from None
