"""Weights of blocks shared out over processes, gathered a block ahead of their use (FSDP2; arXiv 2304.11277)."""

from itertools import pairwise

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from fastvideo.v1.distributed import ParallelGroup
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.layers.weight_loading import copy_exactly, keep_loader
from fastvideo.v1.models.base import Model


def shard_blocks(model: Model, group: ParallelGroup, device: torch.device) -> None:
    """Leaves each rank of ``group`` its part of every parameter of the blocks and of token embeddings, on ``device``.

    ``model`` is on the meta device, and has no values yet afterwards. A forward gathers a block while the one before it
    computes, and frees it after; what stands outside the blocks is whole on every rank. At most there are three blocks
    beside the parts: the one at work, the buffer that it was gathered in and that of the next, which stays where a call
    leaves the next one out (``skip_layers``).

    Convolutions find their weights in PyTorch's own order of channels, and put them in another as they need it.

    Every rank must call the model equally often. So the group is the one that works on the same sample, less its tensor
    part, which holds other weights: data groups walk different numbers of samples, and would wait for each other.
    """
    mesh = DeviceMesh.from_group(group.transport, device.type)
    embeddings = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    sequences = [(caller, [*embeddings, *blocks]) for caller, blocks in model.block_sequences()]
    shared = {parameter for _, units in sequences for unit in units for parameter in unit.parameters()}
    model.place_parameters(lambda name, parameter: parameter.contiguous() if parameter in shared else parameter)
    before = dict(model.named_parameters())
    for caller, units in sequences:
        _shard(caller, units, mesh)
    for name, parameter in model.named_parameters():
        keep_loader(before[name], parameter)
    model.place_parameters(lambda name, parameter: torch.empty_like(parameter, device=device))
    model.weights_travel = model.weights_are_shared_out = True


def _shard(caller: nn.Module, units: list[nn.Module], mesh: DeviceMesh) -> None:
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    whole = {parameter for parameter in caller.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(caller, mesh=mesh, ignored_params=whole)  # the root, which the units' streams belong to
    for unit, following in pairwise([caller, *units]):
        assert isinstance(unit, FSDPModule) and isinstance(following, FSDPModule)
        unit.set_modules_to_forward_prefetch([following])


def gathered_like(parameter: nn.Parameter) -> nn.Parameter | None:
    """An uninitialised parameter in host memory of the size of all ranks' parts, with the loader of ``parameter``.

    None for one that is whole on every rank.
    """
    if not isinstance(parameter, DTensor):
        return None
    whole = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)
    keep_loader(parameter, whole)
    return whole


def keep_part(parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """Copies this rank's part of ``whole`` into ``parameter``; every rank has the same whole, so none is sent."""
    assert isinstance(parameter, DTensor), "a parameter that is not sharded is loaded as it is"
    parts, rank = whole.chunk(parameter.device_mesh.size()), parameter.device_mesh.get_local_rank()
    if rank < len(parts):  # a parameter of few rows has none for the last ranks
        copy_exactly(parameter.to_local(), parts[rank])
