"""What one phase hands to the next, one sample at a time: tensors and scalars of a batch, and back.

A masked field (``prompt_embeds`` by ``prompt_mask``) travels without its padding; the mask says how much there was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch

_CUSTOM = "custom."
State = tuple[dict[str, torch.Tensor], dict[str, Any]]


def export_sample(batch: ForwardBatch, fields: Sequence[str], index: int) -> State:
    """The ``fields`` of sample ``index`` without the batch axis, and the batch's custom values."""
    tensors, scalars = {}, {}
    for name in fields:
        value = getattr(batch, name)
        if value is not None:
            tensors[name] = value[index]
    for name in [name for name in tensors if _mask_of(name) in tensors]:
        tensors[name] = tensors[name][: int(tensors[_mask_of(name)].sum())]
    for name, value in batch.custom.items():
        if isinstance(value, torch.Tensor):
            tensors[_CUSTOM + name] = value[index]
        else:
            scalars[_CUSTOM + name] = value
    return tensors, scalars


def import_sample(
    batch: ForwardBatch, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any], prefix: str = ""
) -> None:
    """Puts an exported sample into ``batch``, as a batch of one; ``prefix`` goes before each field's name."""
    for name, tensor in tensors.items():
        if name.startswith(_CUSTOM):
            batch.custom[prefix + name.removeprefix(_CUSTOM)] = tensor[None]
            continue
        mask = tensors.get(_mask_of(name))
        if mask is not None:
            tensor = F.pad(tensor, (0, 0, 0, len(mask) - len(tensor)))
        setattr(batch, prefix + name, tensor[None])
    for name, value in scalars.items():
        batch.custom[prefix + name.removeprefix(_CUSTOM)] = value


def _mask_of(name: str) -> str:
    return name.removesuffix("_embeds") + "_mask" if name.endswith("_embeds") else ""
