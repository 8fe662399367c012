"""`fastvideo bench parallel --dry`: layouts of several GPUs at full size, their collectives and the choice, by
arithmetic on the cost model of :mod:`fastvideo.v1.distributed.cost`. Needs no GPU.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, get_args

from fastvideo.v1.distributed.choice import Goal, LayoutChoice, choose_layout
from fastvideo.v1.distributed.cluster import GIB, GPUS, LINKS, Cluster
from fastvideo.v1.distributed.cost import StepCost, Workload, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.entrypoints.bench.memory import META, SYSTEMS, Canvas, build_full_size, load_config
from fastvideo.v1.models.dits.workload import dit_workload
from fastvideo.v1.pipelines.phase import Phase

# A system's checkpoint, the canvas, and the forwards of a step: two where a negative prompt guides.
WORKLOADS = {
    "wan21_t2v_1.3B_480p": ("wan21_t2v_1.3B", Canvas(480, 832, 81), 2),
    "wan21_t2v_14B_480p": ("wan21_t2v_14B", Canvas(480, 832, 81), 2),
    "wan21_t2v_14B_720p": ("wan21_t2v_14B", Canvas(720, 1280, 81), 2),
    "hunyuanvideo_13B_544p": ("hunyuanvideo_13B", Canvas(544, 960, 129), 1),
    "hunyuanvideo_13B_720p": ("hunyuanvideo_13B", Canvas(720, 1280, 129), 1),
}
_NUM_STEPS = 50


def bench_parallel(workloads: list[str], num_gpus: list[int], gpu: str, link: str) -> dict[str, Any]:
    """The collectives of each way to share a sample, per step and GPU, and the layout chosen for either goal.

    ``gpu`` and ``link`` name assumed figures of :mod:`fastvideo.v1.distributed.cluster`. A sample has 50 steps.
    """
    cluster = replace(Cluster(), gpu=GPUS[gpu], inside=LINKS[link])
    rows: list[dict[str, Any]] = []
    collectives: list[dict[str, Any]] = []
    for name in workloads or list(WORKLOADS):
        if name not in WORKLOADS:
            raise ValueError(f"no workload {name!r}; there are: {', '.join(WORKLOADS)}")
        work = full_size_workload(*WORKLOADS[name])
        for count in num_gpus:
            said = {"workload": name, "gpus": count}
            for layout, fsdp in _ways_to_share(work, count):
                collectives += _collective_rows(said, layout, fsdp, step_cost(work, layout, cluster, fsdp))
            rows += [
                {**said, "goal": goal, **_choice_row(choose_layout(work, count, goal, cluster))}
                for goal in get_args(Goal)
            ]
    assumed = [asdict(part) for part in (cluster.gpu, cluster.inside, cluster.between)]
    return {
        "modelled": f"{cluster.gpu.name}s linked by {cluster.inside.name}, by arithmetic",
        "assumed": assumed,
        "reserved_gib": cluster.reserved / GIB,
        "collectives": collectives,
        "rows": rows,
    }


def full_size_workload(system: str, canvas: Canvas, num_branches: int) -> Workload:
    """One step of a system's transformer; its weights are counted on modules without any."""
    (part,) = (part for part in SYSTEMS[system].components if part.phase is Phase.DENOISE)
    weights = sum(parameter.nbytes for parameter in build_full_size(part, META).parameters())
    size = ((canvas.num_frames - 1) // 4 + 1, canvas.height // 8, canvas.width // 8)
    work = dit_workload(load_config(part.config), size, weights, num_branches)
    assert work is not None, f"no arithmetic for {system}"
    return work


def _ways_to_share(work: Workload, num_gpus: int) -> Iterator[tuple[ParallelLayout, int]]:
    """One sample over all GPUs along each single axis, or samples side by side on weights that all GPUs share."""
    if num_gpus == work.num_branches == 2:
        yield ParallelLayout(cfg=2), 1
    if work.num_heads % num_gpus == 0:
        yield ParallelLayout(ulysses=num_gpus), 1
    yield ParallelLayout(ring=num_gpus), 1
    if work.num_heads % num_gpus == 0:
        yield ParallelLayout(tensor=num_gpus), 1
    yield ParallelLayout(data=num_gpus), num_gpus


def _collective_rows(
    said: dict[str, Any], layout: ParallelLayout, fsdp: int, cost: StepCost
) -> Iterator[dict[str, Any]]:
    for collective in cost.collectives:
        yield {
            **said,
            "layout": layout.brief if fsdp == 1 else f"{layout.brief}, fsdp={fsdp}",
            "collective": collective.name,
            "count": collective.count,
            "mb": collective.bytes / 1e6,
            "ms": collective.seconds * 1e3,
            "exposed_ms": collective.exposed * 1e3,
            "step_ms": cost.seconds * 1e3,
        }


def _choice_row(choice: LayoutChoice) -> dict[str, Any]:
    assert choice.cost is not None
    sample = _NUM_STEPS * choice.cost.seconds
    return {
        "layout": choice.layout.brief,
        "step_ms": choice.cost.seconds * 1e3,
        "exchange": choice.cost.exchange / choice.cost.seconds,
        "sample_seconds": sample,
        "samples_per_hour": 3600 * choice.layout.data / sample,
        "reason": choice.reason,
    }
