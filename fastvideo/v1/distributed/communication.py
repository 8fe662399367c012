"""All collectives: each is the identity in a group of one, and differentiable nowhere.

Every rank of the group must call them in the same order with equal shapes and data types. A rank that does not come
makes the others raise ``RuntimeError`` when the group's timeout is over (on a GPU, the process is ended).
"""

from typing import TypeVar

import torch
import torch.distributed as dist

from fastvideo.v1.distributed.group import ParallelGroup

T = TypeVar("T")


def all_reduce(tensor: torch.Tensor, group: ParallelGroup) -> torch.Tensor:
    """The sum over the group: ``[...]`` to ``[...]``, in place where ``tensor`` is contiguous."""
    if group.size == 1:
        return tensor
    total = tensor.contiguous()
    dist.all_reduce(total, group=group.transport)
    return total


def all_gather(tensor: torch.Tensor, dim: int, group: ParallelGroup) -> torch.Tensor:
    """All ranks' parts in the order of ranks: ``[..., s / size, ...]`` to ``[..., s, ...]``, where ``s`` is ``dim``."""
    if group.size == 1:
        return tensor
    mine = tensor.contiguous()
    parts = [torch.empty_like(mine) for _ in range(group.size)]
    dist.all_gather(parts, mine, group=group.transport)
    return torch.cat(parts, dim=dim)


def all_to_all(
    tensor: torch.Tensor, scatter_dim: int, gather_dim: int, group: ParallelGroup, out: torch.Tensor | None = None
) -> torch.Tensor:
    """A part of ``scatter_dim`` (n) for all of ``gather_dim`` (s): ``[n, s / size]`` to ``[n / size, s]``.

    Other dims may stand anywhere. Rank ``r`` gets the ``r``-th part of ``n``; the parts of ``s`` are in the order of
    ranks. With the two dims exchanged it is its own inverse. ``out``, part of a larger tensor maybe, is where the
    result goes. A dim that no other than those of size 1 comes before needs no copy on its side. Raises ``ValueError``
    when the group does not divide ``n``.
    """
    if group.size == 1:
        return tensor if out is None else out.copy_(tensor)
    part = group.shard_size(tensor.shape[scatter_dim], f"dimension {scatter_dim}")
    if out is None:
        shape = list(tensor.shape)
        shape[scatter_dim], shape[gather_dim] = part, shape[gather_dim] * group.size
        out = tensor.new_empty(shape)
    sent = tensor.unflatten(scatter_dim, (group.size, part)).movedim(scatter_dim, 0)
    if not sent.is_contiguous():
        sent = _copy(sent, to=sent.new_empty(sent.shape))
    gathered = out.unflatten(gather_dim, (group.size, -1)).movedim(gather_dim, 0)
    received = gathered if gathered.is_contiguous() else torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group.transport)
    if received is not gathered:
        _copy(received, to=gathered)
    return out


def _copy(source: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """In words of 16 bytes where rows have them: PyTorch's strided copy of short elements has half the bandwidth."""
    per_word = 16 // source.element_size()
    steps = [step for x in (source, to) for step in (*x.stride()[:-1], x.storage_offset(), x.shape[-1])]
    if source.stride(-1) == to.stride(-1) == 1 and not any(step % per_word for step in steps):
        to.view(torch.complex128).copy_(source.view(torch.complex128))
    else:
        to.copy_(source)
    return to


def start_shift(tensor: torch.Tensor, group: ParallelGroup) -> tuple[torch.Tensor, list[dist.Work]]:
    """Sends ``[...]`` to the next rank of the ring, and returns where that of the rank before will be: ``[...]``.

    It is there, and ``tensor`` may be written to, once every one of the transfers is waited for.
    """
    if group.size == 1:
        return tensor, []
    tensor = tensor.contiguous()
    received = torch.empty_like(tensor)
    transport, following, before = group.transport, (group.rank + 1) % group.size, (group.rank - 1) % group.size
    transfers = [
        dist.P2POp(dist.isend, tensor, group=transport, group_peer=following),
        dist.P2POp(dist.irecv, received, group=transport, group_peer=before),
    ]
    return received, dist.batch_isend_irecv(transfers)


def exchange_halo(
    tensor: torch.Tensor, dim: int, group: ParallelGroup
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The last slice of the rank before and the first of the rank after: ``[..., s, ...]`` to two ``[..., 1, ...]``.

    None stands for a neighbour that is not there: before the first rank, after the last, on both sides at size 1. ``s``
    is ``dim`` and may differ between ranks.
    """
    if group.size == 1:
        return None, None
    transport = group.transport
    received: list[torch.Tensor | None] = []
    transfers = []
    for neighbour, place in ((group.rank - 1, 0), (group.rank + 1, tensor.shape[dim] - 1)):
        if not 0 <= neighbour < group.size:
            received.append(None)
            continue
        edge = tensor.narrow(dim, place, 1).contiguous()
        other = torch.empty_like(edge)
        received.append(other)
        transfers.append(dist.P2POp(dist.isend, edge, group=transport, group_peer=neighbour))
        transfers.append(dist.P2POp(dist.irecv, other, group=transport, group_peer=neighbour))
    for transfer in dist.batch_isend_irecv(transfers):
        transfer.wait()
    return received[0], received[1]


def broadcast(tensor: torch.Tensor, group: ParallelGroup, source: int = 0) -> torch.Tensor:
    """``[...]`` of the group's rank ``source`` to all ranks' ``[...]``, in place where ``tensor`` is contiguous."""
    if group.size == 1:
        return tensor
    copy = tensor.contiguous()
    dist.broadcast(copy, group=group.transport, group_src=source)
    return copy


def broadcast_object(value: T, group: ParallelGroup, source: int = 0) -> T:
    """The value of the group's rank ``source``, pickled; for control, not for tensors."""
    if group.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=group.transport, group_src=source)
    return values[0]


def gather_objects(value: T, group: ParallelGroup) -> list[T]:
    """All ranks' values in the order of ranks, pickled; for control, not for tensors."""
    if group.size == 1:
        return [value]
    values = [value] * group.size
    dist.all_gather_object(values, value, group=group.transport)
    return values


def barrier(group: ParallelGroup) -> None:
    """Returns when every rank of the group has called it."""
    if group.size > 1:
        dist.barrier(group=group.transport)
