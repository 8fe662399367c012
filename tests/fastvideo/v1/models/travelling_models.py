"""Models whose blocks come and go, as configs of uneven sizes, with inputs and weights drawn from a seed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from fastvideo.v1.layers.linear import MergedColumnParallelLinear
from fastvideo.v1.models.base import Model
from fastvideo.v1.models.dits.hunyuan import HunyuanVideoTransformer3DModel
from fastvideo.v1.models.dits.wan import WanTransformer3DModel
from fastvideo.v1.models.encoders.llama import LlamaModel
from fastvideo.v1.models.encoders.umt5 import UMT5EncoderModel
from fastvideo.v1.models.loader.weights import assign_weights


class Case(NamedTuple):
    """A model's class and config, and the arguments of a call."""

    model_class: type[Model]
    config: dict[str, Any]
    arguments: tuple[Any, ...]


def draw_cases(seed: int) -> dict[str, Case]:
    """The same on every rank for the same seed; lengths that two processes do not divide are among the sizes."""
    torch.manual_seed(seed)
    latents, timestep, ids = torch.randn(1, 16, 3, 4, 6), torch.rand(1) * 1000, torch.randint(37, (2, 9))
    mask = (torch.arange(9) < torch.randint(1, 10, (2, 1))).long()
    wan = {"num_attention_heads": 3, "attention_head_dim": 16, "text_dim": 33, "freq_dim": 24, "ffn_dim": 71}
    hunyuan = {
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "text_embed_dim": 33,
        "pooled_projection_dim": 15,
        "rope_axes_dim": (4, 6, 6),
    }
    umt5 = {"vocab_size": 37, "d_model": 21, "d_kv": 8, "d_ff": 33, "num_layers": 3, "num_heads": 3}
    llama = {
        "vocab_size": 37,
        "hidden_size": 30,
        "intermediate_size": 45,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
    }
    joint_text = [torch.randn(1, 7, 33), torch.randn(1, 15)]
    return {
        "wan": Case(WanTransformer3DModel, wan | {"num_layers": 3}, (latents, torch.randn(1, 5, 33), timestep)),
        "hunyuan": Case(
            HunyuanVideoTransformer3DModel, hunyuan, (latents, joint_text, timestep, None, torch.rand(1) * 8000)
        ),
        "umt5": Case(UMT5EncoderModel, umt5, (ids, mask)),
        "llama, the last layers left out": Case(LlamaModel, llama, (ids, mask, 2)),
        "llama": Case(LlamaModel, llama, (ids, mask)),
    }


def call(model: Model, case: Case, device: torch.device | None = None) -> torch.Tensor:
    """The model's output for the case's inputs, in the model's dtype, on ``device``."""

    def given(value: Any) -> Any:
        if isinstance(value, list):
            return [given(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, model.dtype) if value.is_floating_point() and value.ndim > 1 else value.to(device)

    return model(*map(given, case.arguments))


def draw_checkpoint(model: Model) -> dict[str, torch.Tensor]:
    """Values for every parameter of ``model``, which has any device, under the names of a checkpoint."""
    checkpoint = {}
    for name, parameter in model.named_parameters():
        module_name, _, key = name.rpartition(".")
        parent, _, last = module_name.rpartition(".")
        module, parts = model.get_submodule(module_name), model.packed_modules.get(last, (last,))
        values = torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
        if len(parts) == 1:
            pieces: Sequence[torch.Tensor] = [values]
        elif isinstance(module, MergedColumnParallelLinear):
            pieces = values.split(module.part_sizes)
        else:
            pieces = values.unbind()  # the norms of queries and keys are a row each
        for part, piece in zip(parts, pieces, strict=True):
            checkpoint[".".join(filter(None, (parent, part, key)))] = piece
    return checkpoint


def fill(model: Model, checkpoint: dict[str, torch.Tensor], reverse: bool = False) -> None:
    """Loads ``checkpoint`` tensor by tensor; in another order the parts of a merged weight come far apart."""
    names = sorted(checkpoint, key=lambda name: name[::-1], reverse=reverse)
    tensors: Iterator[tuple[str, str, torch.Tensor]] = (("drawn", name, checkpoint[name]) for name in names)
    assign_weights(model, tensors, "drawn")
