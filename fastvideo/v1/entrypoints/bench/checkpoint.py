"""A checkpoint of random weights at full size, as published ones lie on disk, for what starts from files."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.entrypoints.bench.memory import META, load_config
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.loader.component import build_model
from fastvideo.v1.models.registry import resolve_model

SHARD_BYTES = 5_000_000_000
_FLOW_MATCH = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0, "num_train_timesteps": 1000}
# Of each transformer's class: the pipeline, the scheduler's config (None: the embedded model's), and of the models that
# are not loaded their classes and configs.
_FAMILIES: dict[str, tuple[str, dict[str, Any] | None, dict[str, tuple[str, str]]]] = {
    "WanTransformer3DModel": (
        "WanPipeline",
        None,
        {"vae": ("AutoencoderKLWan", "wan_vae"), "text_encoder": ("UMT5EncoderModel", "umt5_xxl_encoder")},
    ),
    "HunyuanVideoTransformer3DModel": (
        "HunyuanVideoPipeline",
        _FLOW_MATCH,
        {
            "vae": ("AutoencoderKLHunyuanVideo", "hunyuan_vae"),
            "text_encoder": ("LlamaModel", "llama3_8b"),
            "text_encoder_2": ("CLIPTextModel", "clip_l_text"),
        },
    ),
}


def write_checkpoint(folder: Path, name: str, num_layers: int | None) -> int:
    """Writes a model directory with the transformer of config ``name``, and returns the bytes of its weights.

    ``num_layers`` cuts its blocks of each kind down to so many. Of the other components there are configs alone: the
    denoise phase loads no more. Raises ``ValueError`` for a config that is no transformer of ours.
    """
    config = load_config(name)
    if config.get("_class_name") not in _FAMILIES:
        raise ValueError(f"{name!r} is no diffusion transformer that a pipeline of ours runs")
    pipeline, scheduler, others = _FAMILIES[config["_class_name"]]
    if num_layers is not None:
        kinds = ("num_layers", "num_single_layers")
        config |= {kind: min(num_layers, config[kind]) for kind in kinds if kind in config}
    if scheduler is None:
        scheduler = json.loads((Path(EMBEDDED_MODEL) / "scheduler/scheduler_config.json").read_text())
    _write_json(folder / "transformer" / "config.json", config)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        part: ["diffusers", values["_class_name"]]
        for part, values in (("transformer", config), ("scheduler", scheduler))
    }
    for part, (class_name, file) in others.items():
        _write_json(folder / part / "config.json", load_config(file))
        index[part] = ["diffusers", class_name]
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            _write_json(folder / tokenizer / "tokenizer_config.json", {})
            index[tokenizer] = ["diffusers", "(not loaded)"]
    _write_json(folder / "model_index.json", {"_class_name": pipeline, **index})
    model = build_model(resolve_model(config["_class_name"]), config, META, torch.bfloat16)
    return _write_weights(folder / "transformer", model)


def _write_weights(folder: Path, model: Model) -> int:
    """bfloat16 files of at most five gigabytes and their index; returns all bytes."""
    names: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total, number = 0, 0
    block = torch.randn(2**24).mul_(0.02).bfloat16()
    tensors = list(_shapes(model))
    for position, (key, shape) in enumerate(tensors):
        tensor = _fill(shape, block)
        shard[key], total = tensor, total + tensor.nbytes
        is_last = position == len(tensors) - 1
        if is_last or sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            file = f"diffusion_pytorch_model-{number:05d}.safetensors"
            if shutil.disk_usage(folder).free < 2 * sum(tensor.nbytes for tensor in shard.values()):
                raise ValueError(f"{folder} is nearly full; give --folder a disk with room for the weights")
            save_file(shard, folder / file)
            names |= dict.fromkeys(shard, file)
            shard, number = {}, number + 1
    _write_json(
        folder / "diffusion_pytorch_model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": names},
    )
    return total


def _shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The checkpoint's tensors: a packed parameter's parts by their own names."""
    for name, parameter in model.named_parameters():
        *path, module, leaf = ("", *name.split("."))[-max(2, name.count(".") + 1) :]
        parts = model.packed_modules.get(module)
        if parts is None:
            yield name, tuple(parameter.shape)
            continue
        rows, rest = len(parameter) // len(parts), tuple(parameter.shape[1:])
        for part in parts:
            yield ".".join([*path, part, leaf]), rest if rows == 1 else (rows, *rest)


def _fill(shape: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
    """The block over and over: fourteen billion draws would take minutes."""
    size = int(torch.Size(shape).numel())
    return block.repeat(-(-size // len(block)))[:size].reshape(shape).clone()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2))
