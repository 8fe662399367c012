"""The world's groups and their collectives, in processes of gloo."""

import random
import time
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from fastvideo.v1.distributed import communication, parallel_state
from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import close_world, get_layout, init_world
from tests.fastvideo.v1.distributed.processes import TIMEOUT, run_processes

pytestmark = pytest.mark.xdist_group("processes")  # which all of them share

GROUPS = {
    "data": parallel_state.get_data_group,
    "cfg": parallel_state.get_cfg_group,
    "sequence": parallel_state.get_sp_group,
    "ulysses": parallel_state.get_ulysses_group,
    "ring": parallel_state.get_ring_group,
    "tensor": parallel_state.get_tp_group,
    "replica": parallel_state.get_replica_group,
    "model": parallel_state.get_model_group,
}
LAYOUTS = {
    2: [ParallelLayout(data=2), ParallelLayout(cfg=2), ParallelLayout(ring=2), ParallelLayout(tensor=2)],
    4: [
        ParallelLayout(ulysses=2, ring=2),
        ParallelLayout(ulysses=2, tensor=2),
        ParallelLayout(cfg=2, ring=2),
        ParallelLayout(data=2, cfg=2),
        ParallelLayout(ulysses=4),
    ],
}


def members(layout: ParallelLayout, rank: int) -> dict[str, list[int]]:
    """The ranks of each group that ``rank`` is in, from the order of axes alone."""
    ranks = torch.arange(layout.size).view(layout.data, layout.cfg, layout.ring, layout.ulysses, layout.tensor)
    data, cfg, ring, ulysses, tensor = (int(place) for place in (ranks == rank).nonzero()[0])
    groups = {
        "data": ranks[:, cfg, ring, ulysses, tensor],
        "cfg": ranks[data, :, ring, ulysses, tensor],
        "sequence": ranks[data, cfg, :, :, tensor],
        "ulysses": ranks[data, cfg, ring, :, tensor],
        "ring": ranks[data, cfg, :, ulysses, tensor],
        "tensor": ranks[data, cfg, ring, ulysses, :],
        "replica": ranks[data, :, :, :, tensor],
        "model": ranks[data],
    }
    return {name: group.flatten().tolist() for name, group in groups.items()}


def check_groups(layout: ParallelLayout, rank: int) -> None:
    for name, expected in members(layout, rank).items():
        group = GROUPS[name]()
        assert (group.size, group.rank) == (len(expected), expected.index(rank)), (layout, name)
        assert communication.all_gather(torch.tensor([rank]), 0, group).tolist() == expected, (layout, name)


def check_collectives(group: ParallelGroup, dtype: torch.dtype) -> None:
    """Each rank draws what all ranks hold, and its own part of it is what it sends."""
    whole = torch.randn(group.size, 3, 4 * group.size, 5, generator=torch.Generator().manual_seed(group.size)).to(dtype)
    mine = whole[group.rank]
    total = communication.all_reduce(mine.clone(), group).double()
    rounding = 2 * group.size * torch.finfo(dtype).eps  # partial sums are rounded, and may cancel
    torch.testing.assert_close(total, whole.double().sum(0), rtol=0, atol=rounding)
    for dim in (0, 1, -1):
        assert torch.equal(communication.all_gather(mine, dim, group), torch.cat(whole.unbind(), dim))
    across = communication.all_to_all(mine, scatter_dim=1, gather_dim=2, group=group)
    assert torch.equal(across, torch.cat(whole.unbind(), 2)[:, 4 * group.rank : 4 * (group.rank + 1)])
    assert torch.equal(communication.all_to_all(across, scatter_dim=2, gather_dim=1, group=group), mine)
    transposed = mine.transpose(0, 1)
    assert torch.equal(communication.broadcast(transposed.clone(), group, group.size - 1), whole[-1].transpose(0, 1))
    assert communication.broadcast_object({"rank": group.rank}, group, source=group.size - 1) == {
        "rank": group.size - 1
    }
    communication.barrier(group)


def check_a_rank_that_does_not_come(rank: int, num_processes: int) -> None:
    build = parallel_state._build_control_group
    with mock.patch.object(parallel_state, "_build_control_group", lambda layout, _: build(layout, TIMEOUT)):
        # To connect takes the time that it takes: only the collectives are timed.
        init_world(ParallelLayout(data=num_processes // 2, tensor=2), "cpu", timeout=timedelta(seconds=1))
    if rank % 2 == 0:
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
            communication.all_reduce(torch.ones(2), parallel_state.get_tp_group())
        assert time.monotonic() - started < TIMEOUT.total_seconds() / 2
    dist.barrier()
    close_world()


def check_worlds(rank: int, num_processes: int) -> None:
    for layout in LAYOUTS[num_processes]:
        init_world(layout, "cpu", TIMEOUT)
        assert get_layout() == layout
        check_groups(layout, rank)
        for dtype in (torch.float32, torch.bfloat16):
            check_collectives(parallel_state.get_model_group(), dtype)
            check_collectives(parallel_state.get_sp_group(), dtype)
        with pytest.raises(RuntimeError, match="call close_world"):
            init_world(layout, "cpu", TIMEOUT)
        close_world()
        assert get_layout() == ParallelLayout() and parallel_state.get_model_group().size == 1
        dist.barrier()
    with pytest.raises(ValueError, match=f"there are, {num_processes}; nearest: data={num_processes} "):
        init_world(ParallelLayout(data=num_processes + 1), "cpu", TIMEOUT)
    if num_processes > 2:  # of two processes the tensor group is all, with the world's own timeout
        check_a_rank_that_does_not_come(rank, num_processes)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", sorted(LAYOUTS))
def test_every_layout_has_its_groups_and_their_collectives(num_processes):
    run_processes(num_processes, check_worlds, num_processes)


def test_alone_every_collective_is_the_identity():
    init_world(ParallelLayout(), "cpu")
    for get_group in GROUPS.values():
        group, x = get_group(), torch.randn(2, 3)
        assert (group.rank, group.size) == (0, 1)
        assert communication.all_reduce(x, group) is x
        assert communication.all_gather(x, 0, group) is x
        assert communication.all_to_all(x, 0, 1, group) is x
        assert communication.broadcast(x, group) is x
        assert communication.broadcast_object(x, group) is x
        communication.barrier(group)
    close_world()


def test_groups_end_in_one_order_on_every_rank():
    names = random.sample([f"{number:02}" for number in range(16)], 16)
    groups = {name: ParallelGroup(name, 0, 2, mock.Mock(group_name=name)) for name in names}
    with (
        mock.patch.object(parallel_state._world, "groups", groups),
        mock.patch.object(dist, "destroy_process_group") as destroy,
    ):
        close_world()
    assert [call.args[0].group_name for call in destroy.call_args_list] == sorted(names)


def test_a_world_of_several_needs_torch_distributed():
    with pytest.raises(RuntimeError, match=r"tensor=2 \(= 2\) needs torch.distributed; call init_process_group"):
        init_world(ParallelLayout(tensor=2), "cpu")


def test_parts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="dimension 0=5 must be divisible by the sequence size 2"):
        communication.all_to_all(torch.zeros(5, 4), 0, 1, ParallelGroup("sequence", 0, 2))
