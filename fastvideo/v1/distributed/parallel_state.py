"""The groups that a process belongs to: data x cfg x ring x ulysses x tensor.

Models ask for a group and call collectives in it; at size 1 every collective is the identity, so that a model reads as
single-GPU code. Groups larger than 1 are built here and nowhere else. A layer keeps the group that it was built with:
build models after :func:`init_world`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.layout import ParallelLayout

AXES = ("data", "cfg", "ring", "ulysses", "tensor")
_MERGED_AXES = {
    "sequence": ("ring", "ulysses"),
    "replica": ("cfg", "ring", "ulysses"),
    "model": ("cfg", "ring", "ulysses", "tensor"),
}


@dataclass
class _World:
    """The module's state: a layout, the groups that are larger than 1, and how long their ranks wait for each other."""

    layout: ParallelLayout = field(default_factory=ParallelLayout)
    groups: dict[str, ParallelGroup] = field(default_factory=dict)
    timeout: timedelta = timedelta(minutes=10)


_world = _World()


def init_world(layout: ParallelLayout, device_type: str, timeout: timedelta = timedelta(minutes=10)) -> None:
    """Builds the groups of ``layout`` over all processes of ``torch.distributed``; without effect for one process.

    ``device_type`` is that of the tensors to be sent, ``cpu`` or ``cuda``. A collective that waits longer than
    ``timeout`` fails; a group of all processes is that of ``torch.distributed`` itself and keeps its own. Raises
    ``ValueError`` when the number of processes is not that of ``layout``, ``RuntimeError`` when there is a world.
    """
    if _world.layout.size > 1:
        raise RuntimeError(f"the world has been built as {_world.layout}; call close_world() before {layout}")
    if dist.is_initialized():
        layout.check_num_processes(dist.get_world_size())
    elif layout.size > 1:
        raise RuntimeError(f"layout {layout} needs torch.distributed; call init_process_group() first")
    if layout.size > 1:
        _world.groups = _build_groups(layout, device_type) | _build_control_group(layout, timeout)
        _world.layout, _world.timeout = layout, timeout
        for process_group in _own_process_groups():
            _set_pg_timeout(timeout, process_group)


def close_world() -> None:
    """Ends the groups, and leaves ``torch.distributed`` as it was before :func:`init_world`."""
    for process_group in _own_process_groups():
        dist.destroy_process_group(process_group)
    _world.layout, _world.groups = ParallelLayout(), {}


def get_layout() -> ParallelLayout:
    """The layout of the world, all ones before :func:`init_world`."""
    return _world.layout


def get_data_group() -> ParallelGroup:
    """The processes that do as this one does for other samples."""
    return _get_group("data")


def get_cfg_group() -> ParallelGroup:
    """The processes that compute the two branches of guidance, the conditional one first."""
    return _get_group("cfg")


def get_ring_group() -> ParallelGroup:
    """The processes among which keys and values go round."""
    return _get_group("ring")


def get_ulysses_group() -> ParallelGroup:
    """The processes that exchange tokens for heads."""
    return _get_group("ulysses")


def get_sp_group() -> ParallelGroup:
    """The processes that share a sequence: ring x ulysses, parts of the sequence in the order of ranks."""
    return _get_group("sequence")


def get_tp_group() -> ParallelGroup:
    """The processes that share each matrix."""
    return _get_group("tensor")


def get_replica_group() -> ParallelGroup:
    """The processes that hold the same weights and work on the same sample: cfg x ring x ulysses."""
    return _get_group("replica")


def get_model_group() -> ParallelGroup:
    """All processes that work on this one's sample."""
    return _get_group("model")


def get_control_group() -> ParallelGroup:
    """The processes of :func:`get_model_group` again, over a transport of its own for objects and CPU tensors.

    What they decide together never stands between the models' collectives, nor waits for a GPU.
    """
    return _get_group("control")


@contextmanager
def waiting_at_most(timeout: timedelta) -> Iterator[None]:
    """Within the block, collectives in :func:`get_control_group` fail on this rank after ``timeout``, if it is less."""
    group = get_control_group()
    if group.size > 1:
        _set_pg_timeout(min(timeout, _world.timeout), group.transport)
    try:
        yield
    finally:
        if group.size > 1:
            _set_pg_timeout(_world.timeout, group.transport)


def _get_group(name: str) -> ParallelGroup:
    return _world.groups.get(name) or ParallelGroup(name)


def _build_groups(layout: ParallelLayout, device_type: str) -> dict[str, ParallelGroup]:
    """Axes of size 1 are left out of the mesh: each would cost a process group a rank, made by all ranks in turn."""
    sizes = {f.name: size for f, size in zip(fields(layout), astuple(layout), strict=True)}
    axes = tuple(axis for axis in AXES if sizes[axis] > 1)
    mesh = init_device_mesh(device_type, tuple(sizes[axis] for axis in axes), mesh_dim_names=axes)
    meshes: dict[tuple[str, ...], DeviceMesh] = {(axis,): mesh[axis] for axis in axes}
    groups = {axis: _group_of(axis, meshes[axis,], layout) for axis in axes}
    for name, parts in _MERGED_AXES.items():
        present = tuple(axis for axis in parts if axis in axes)
        if present and present not in meshes:
            meshes[present] = mesh[present]._flatten(name)
        if present:
            groups[name] = _group_of(name, meshes[present], layout)
    return groups


def _build_control_group(layout: ParallelLayout, timeout: timedelta) -> dict[str, ParallelGroup]:
    if layout.model_size == 1:
        return {}
    transport, _ = dist.new_subgroups(layout.model_size, backend="gloo", timeout=timeout)
    return {"control": ParallelGroup("control", dist.get_rank(transport), layout.model_size, transport, layout)}


def _group_of(name: str, mesh: DeviceMesh, layout: ParallelLayout) -> ParallelGroup:
    return ParallelGroup(name, mesh.get_local_rank(), mesh.size(), mesh.get_group(), layout)


def _own_process_groups() -> list[dist.ProcessGroup]:
    """Those that :func:`init_world` made, in one order on every rank; two names may share one."""
    transports = {group.transport for group in _world.groups.values()} - {dist.group.WORLD}
    return sorted(transports, key=lambda transport: transport.group_name)
