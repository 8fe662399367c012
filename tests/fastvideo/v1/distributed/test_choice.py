"""The cost model counts what the collectives send, and the choice keeps its promises."""

import random
from dataclasses import replace

import pytest

from fastvideo.v1.distributed.choice import choose_for_weights, choose_layout, choose_tails
from fastvideo.v1.distributed.cluster import GIB, NETWORK, PCIE, Cluster
from fastvideo.v1.distributed.cost import Workload, memory_bytes, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout


@pytest.fixture
def work():
    """A transformer of random size: 24 heads, so that 2, 4 and 8 GPUs divide them."""
    width, layers, tokens = 24 * random.choice([64, 128]), random.randint(20, 60), 64 * random.randint(200, 2000)
    return Workload(
        matrix_flops=24.0 * layers * tokens * width**2,
        attention_flops=4.0 * layers * tokens**2 * width,
        tokens=tokens,
        joint_text=0,
        width=width,
        num_heads=24,
        num_layers=layers,
        num_sums=3 * layers,
        num_norm_sums=0,
        output_values=64 * tokens,
        kept_values=2 * layers * 512 * width,
        weight_bytes=24.0 * layers * width**2,
        num_branches=2,
    )


def sent(work, layout, fsdp=1):
    """Bytes of each kind that a GPU sends in a step."""
    found = {}
    for collective in step_cost(work, layout, Cluster(), fsdp).collectives:
        kind = collective.name.partition(":")[0]
        found[kind] = found.get(kind, 0) + collective.bytes
    return found


@pytest.mark.parametrize("size", [2, 4, 8])
def test_bytes_are_those_of_the_tensors_that_leave_a_rank(work, size):
    part = 2 * work.tokens * work.width / size  # a rank's hidden states in bfloat16
    forwards = 2 * work.num_layers
    others = (size - 1) / size
    assert sent(work, ParallelLayout(ulysses=size))["ulysses"] == pytest.approx(forwards * 4 * part * others)
    assert sent(work, ParallelLayout(ring=size))["ring"] == pytest.approx(forwards * (size - 1) * 2 * part)
    assert sent(work, ParallelLayout(tensor=size))["tensor"] == pytest.approx(forwards * 3 * 2 * others * part * size)
    assert sent(work, ParallelLayout(data=size), fsdp=size)["fsdp"] == pytest.approx(2 * others * work.weight_bytes)


def test_a_group_across_nodes_goes_over_the_network(work):
    near, far = (step_cost(work, ParallelLayout(ulysses=8), Cluster(gpus_per_node=size)).exchange for size in (8, 4))
    assert far > near
    slow = step_cost(work, ParallelLayout(ulysses=8), Cluster(inside=NETWORK))
    assert slow.exchange == pytest.approx(far)


def test_samples_go_side_by_side_where_the_model_fits(work):
    for num_gpus in (1, 2, 3, 8, 48):
        choice = choose_layout(work, num_gpus, "throughput")
        assert choice.layout == ParallelLayout(data=num_gpus), choice
        assert not choice.cost.collectives


@pytest.mark.parametrize("num_branches", [1, 2])
def test_fewest_seconds_share_one_sample_among_all(work, num_branches):
    work = replace(work, num_branches=num_branches)
    layout = choose_layout(work, 8, "latency").layout
    assert layout == (ParallelLayout(cfg=2, ulysses=4) if num_branches == 2 else ParallelLayout(ulysses=8))


@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_samples_too_few_are_spread_where_that_ends_sooner(work, num_gpus):
    work = replace(work, tokens=64 * 1000, attention_flops=4.0 * work.num_layers * (64 * 1000) ** 2 * work.width)
    base = ParallelLayout(data=num_gpus)
    tails = choose_tails(work, base, 50)
    one = 50 * step_cost(work, base, Cluster()).seconds
    assert tails[1].layout == choose_layout(work, num_gpus, "latency").layout
    assert tails.keys() <= set(range(1, num_gpus)), "as many as groups leave none idle"
    for count, tail in tails.items():
        took = -(-count // tail.layout.data) * 50 * step_cost(work, tail.layout, Cluster()).seconds
        assert tail.layout.size == num_gpus and one - took == pytest.approx(tail.saved) and took < 0.9 * one
        assert f"leaves {num_gpus - count} groups idle" in tail.reason
    if num_gpus == 8:
        assert tails[4].layout == ParallelLayout(data=4, cfg=2) and 7 not in tails, "two rounds of 4 take longer"
    tiny = replace(work, tokens=64, matrix_flops=1e9, attention_flops=1e6, output_values=64**2)
    assert not choose_tails(tiny, base, 50), "collectives would take longer than the work"


def test_a_backend_that_joins_no_ring_gets_none(work):
    work = replace(work, num_heads=3, num_branches=1, joins_rings=False)
    assert choose_layout(work, 4, "latency").layout.ring == 1
    assert all(tail.layout.ring == 1 for tail in choose_tails(work, ParallelLayout(data=4), 50).values())


def test_heads_that_do_not_divide_go_by_the_ring(work):
    work = replace(work, num_heads=3, num_branches=1)
    assert choose_layout(work, 4, "latency").layout == ParallelLayout(ring=4)
    assert choose_layout(work, 6, "latency").layout == ParallelLayout(ulysses=3, ring=2)


def test_matrices_are_shared_only_where_the_weights_do_not_fit(work):
    cluster = Cluster()
    large = replace(work, weight_bytes=1.5 * cluster.usable_memory)
    choice = choose_layout(large, 8, "throughput")
    assert choice.layout.tensor > 1 and memory_bytes(large, choice.layout) <= cluster.usable_memory
    assert "weights do not fit" in choice.reason
    for goal in ("throughput", "latency"):
        assert choose_layout(work, 8, goal, Cluster(inside=PCIE)).layout.tensor == 1


def test_what_fits_nowhere_says_what_it_needs(work):
    with pytest.raises(ValueError, match=r"num_gpus=2: the transformer needs \d+\.\d GiB of each at least"):
        choose_layout(replace(work, weight_bytes=500 * GIB), 2, "throughput")


def test_weights_alone_decide_for_other_models():
    assert choose_for_weights(10 * GIB, 6).layout == ParallelLayout(data=6)
    assert choose_for_weights(100 * GIB, 8).layout == ParallelLayout(data=4, tensor=2)
    with pytest.raises(ValueError, match="do not fit"):
        choose_for_weights(500 * GIB, 2)
