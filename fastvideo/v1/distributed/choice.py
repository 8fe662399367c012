"""Which layout to take: arithmetic alone, on the cost model of :mod:`fastvideo.v1.distributed.cost`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fastvideo.v1.distributed.cluster import GIB, Cluster
from fastvideo.v1.distributed.cost import StepCost, Workload, memory_bytes, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout

Goal = Literal["throughput", "latency"]
"""Most samples an hour, or fewest seconds a sample."""


START_SECONDS = 30.0
"""What one more job costs: of a 14B model 21 s to load and 5 s more in its first step, by
``infra/benchmarks/pipeline_14B_cold_h100.json``."""

_LEAST_GAIN = 0.1  # of the time; below it the model's own error may be larger


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The layout for samples too few for all groups of data, ``saved`` seconds sooner, and in a line why."""

    layout: ParallelLayout
    saved: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout and, in a line, why; ``cost`` is None where no step of a transformer was weighed.

    ``tails``, by number of samples, are for what is left once no group of data wants for one.
    """

    layout: ParallelLayout
    reason: str
    cost: StepCost | None = None
    tails: Mapping[int, Tail] = field(default_factory=dict)


def choose_layout(work: Workload, num_gpus: int, goal: Goal, cluster: Cluster | None = None) -> LayoutChoice:
    """The layout of ``num_gpus`` that serves ``goal`` best.

    Heads divide, the branches of guidance are shared only where there are two, and matrices only where the weights do
    not fit on one GPU. Raises ``ValueError`` when nothing fits in the GPUs' memory.
    """
    cluster = cluster or Cluster()
    possible = [layout for layout in layouts_that_divide(work, num_gpus) if _fits(work, layout, cluster)]
    if not possible:
        smallest = min(memory_bytes(work, layout) for layout in layouts_that_divide(work, num_gpus))
        raise ValueError(
            f"num_gpus={num_gpus}: the transformer needs {smallest / GIB:.1f} GiB of each at least, and one has "
            f"{cluster.usable_memory / GIB:.1f} to give; take more or larger GPUs"
        )
    costs = {layout: step_cost(work, layout, cluster) for layout in possible}
    weigh = {
        "throughput": lambda layout: (costs[layout].seconds / layout.data, -layout.data),
        "latency": lambda layout: (costs[layout].seconds, -layout.data),
    }[goal]
    best = min(possible, key=weigh)
    return LayoutChoice(layout=best, reason=_reason(work, best, costs, goal, cluster), cost=costs[best])


def choose_tails(
    work: Workload, base: ParallelLayout, num_steps: int, cluster: Cluster | None = None
) -> dict[int, Tail]:
    """What fewer samples than groups of data are spread by, for each number of them that is done clearly sooner so.

    In ``base`` each would take as long as ever while other groups have nothing to do. A sample has ``num_steps``.
    """
    cluster = cluster or Cluster()
    layouts = [layout for layout in layouts_that_divide(work, base.size) if _fits(work, layout, cluster)]
    seconds = {layout: num_steps * step_cost(work, layout, cluster).seconds for layout in {*layouts, base}}
    found = {}
    for count in range(1, base.data):
        rounds = {layout: math.ceil(count / layout.data) for layout in layouts}
        best = min(layouts, key=lambda layout: (rounds[layout] * seconds[layout], -layout.data))
        took, takes = seconds[base], rounds[best] * seconds[best]
        if took - takes > _LEAST_GAIN * took:
            reason = f"{takes:.0f} s where {base.brief} takes {took:.0f} s and leaves {base.data - count} groups idle"
            found[count] = Tail(layout=best, saved=took - takes, reason=reason)
    return found


def choose_for_weights(weight_bytes: float, num_gpus: int, cluster: Cluster | None = None) -> LayoutChoice:
    """The layout for models of which no more than the size of their weights is known: samples side by side.

    Where the weights do not fit on one GPU, the fewest share them. Raises ``ValueError`` when all together do not hold
    them.
    """
    cluster = cluster or Cluster()
    usable, needed = cluster.usable_memory, f"{weight_bytes / GIB:.1f} GiB of weights"
    for layout in sorted(ParallelLayout.all_of(num_gpus), key=lambda layout: layout.tensor):
        if layout.model_size == layout.tensor and weight_bytes / layout.tensor <= usable:
            fits = f"fit in the {usable / GIB:.1f} GiB of " + ("one GPU" if layout.tensor == 1 else f"{layout.tensor}")
            return LayoutChoice(layout=layout, reason=f"{needed} {fits}; samples side by side need no exchange")
    raise ValueError(f"num_gpus={num_gpus}: {needed} do not fit in {usable / GIB:.1f} GiB of each; take more GPUs")


def layouts_that_divide(work: Workload, num_gpus: int) -> list[ParallelLayout]:
    """Those of ``num_gpus`` that share heads and branches of guidance evenly."""
    return [
        layout
        for layout in ParallelLayout.all_of(num_gpus)
        if work.num_heads % (layout.tensor * layout.ulysses) == 0 and work.num_branches % layout.cfg == 0
    ]


def _fits(work: Workload, layout: ParallelLayout, cluster: Cluster) -> bool:
    if layout.ring > 1 and not work.joins_rings:
        return False
    if layout.tensor > 1 and work.weight_bytes <= cluster.usable_memory:
        return False
    return memory_bytes(work, layout) <= cluster.usable_memory


def _reason(
    work: Workload, best: ParallelLayout, costs: dict[ParallelLayout, StepCost], goal: Goal, cluster: Cluster
) -> str:
    usable = f"{cluster.usable_memory / GIB:.1f} GiB of a GPU"
    if best.model_size == 1:
        needed = memory_bytes(work, best) / GIB
        why = "samples side by side need no exchange" if best.data > 1 else "one GPU"
        return f"{needed:.1f} of the {usable} are needed; {why}"
    parts = []
    if best.tensor > 1:
        parts.append(f"{work.weight_bytes / GIB:.1f} GiB of weights do not fit in the {usable}")
    elif goal == "throughput":
        alone = memory_bytes(work, replace(best, cfg=1, ulysses=1, ring=1)) / GIB
        parts.append(f"{alone:.1f} GiB of weights and activations do not fit in the {usable}")
    cost = costs[best]
    parts.append(f"{cost.seconds:.2f} s a step, {cost.exchange / cost.seconds:.0%} of it exchange")
    others = [(other.seconds, layout) for layout, other in costs.items() if layout != best and layout.data == best.data]
    if others:
        seconds, layout = min(others, key=lambda other: other[0])
        parts.append(f"next {layout.brief}: {seconds:.2f} s")
    return "; ".join(parts)
