"""`fastvideo bench parallel`: layouts of the GPUs of this host, measured beside what the cost model says of them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastvideo.v1.distributed.cluster import GPUS, LINKS, Cluster
from fastvideo.v1.distributed.cost import StepCost, step_cost
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.entrypoints.bench.parallel import WORKLOADS, full_size_workload
from fastvideo.v1.worker.torchrun import launch

_JOB = "fastvideo.v1.entrypoints.bench.parallel_job"
_TIMEOUT_SECONDS = 3600.0


def run_parallel(
    workloads: Sequence[str],
    num_gpus: Sequence[int],
    *,
    compare: Sequence[str] = (),
    decode: Sequence[str] = (),
    rounds: int = 5,
    gpu: str = "h100",
    link: str = "nvlink",
    config: str | None = None,
    canvas: Sequence[int] | None = None,
    layouts: Sequence[str] = (),
    listener: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Seconds of a denoising step in every layout that shares a sample over so many GPUs, and of all side by side.

    ``compare`` names transformers whose layouts are held against float32, ``decode`` VAEs. ``gpu`` and ``link`` are
    what the model takes for the machine's. ``config`` (a transformer's file) and ``canvas`` (height, width, pixel
    frames) stand in for the workloads' own, ``layouts`` names those to take, such as ``cfg=2 x ulysses=2``.
    ``listener`` hears of each figure when it is there.
    Without a GPU its processes share the CPU. Raises ``JobFailed``.
    """
    available = torch.cuda.device_count()
    if torch.cuda.is_available() and max(num_gpus) > available:
        raise ValueError(f"--gpus {max(num_gpus)}: this host has {available}; nearest: {available}")
    arguments = ["--rounds", str(rounds)]
    asked = {"workloads": workloads, "compare": compare, "decode": decode, "layouts": layouts, "canvas": canvas or ()}
    for name, values in asked.items():
        arguments += [f"--{name}", *map(str, values)] if values else []
    arguments += ["--config", config] if config is not None else []
    events: list[dict[str, Any]] = []
    output: list[str] = []
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    for count in num_gpus:

        def take(event: dict[str, Any], count: int = count) -> None:
            events.append({**event, "of": count})
            listener(events[-1])

        launch(_JOB, arguments, nproc=count, log=output.append, on_event=take, timeout=_TIMEOUT_SECONDS, env=env)
    cluster = replace(Cluster(), gpu=GPUS[gpu], inside=LINKS[link])
    return {"model_of": f"{cluster.gpu.name}, {cluster.inside.name}", **tables(events, cluster, config is None)}


def tables(events: Sequence[dict[str, Any]], cluster: Cluster, is_full_size: bool) -> dict[str, list[dict[str, Any]]]:
    """What the job's events say, ``of`` how many processes it had in each; full-size steps beside the model's."""
    by_kind = {kind: [event for event in events if event["event"] == kind] for kind in ("step", "error", "decode")}
    told = {
        f"{kind}s": [{name: value for name, value in event.items() if name != "event"} for event in by_kind[kind]]
        for kind in ("error", "decode")
    }
    return {**told, "rows": _step_rows(by_kind["step"], cluster, is_full_size)}


def _step_rows(events: Sequence[dict[str, Any]], cluster: Cluster, modelled: bool) -> list[dict[str, Any]]:
    """A row a layout: what was measured, how much faster than one GPU it is, and what the model says."""
    alone = {(event["workload"], event["of"]): event["seconds"] for event in events if event["gpus"] == 1}
    names = {event["workload"] for event in events if modelled}
    works = {name: full_size_workload(*WORKLOADS[name]) for name in names}
    rows = []
    for event in events:
        layout, name = ParallelLayout(*event["layout"]), event["workload"]
        speedup = layout.data * alone[name, event["of"]] / event["seconds"]
        row = {
            "workload": name,
            "gpus": event["gpus"],
            "layout": layout.brief,
            "step_ms": 1e3 * event["seconds"],
            "low": 1e3 * event["low"],
            "high": 1e3 * event["high"],
            "speedup": speedup,
            "efficiency": speedup / event["gpus"],
            "collectives": event["collectives"],
            "mb": event["bytes"] / 1e6,
            "exchange_ms": None if event["exchange"] is None else 1e3 * event["exchange"],
            "peak_gib": None if event["peak"] is None else event["peak"] / 2**30,
        }
        rows.append(row | (_modelled(step_cost(works[name], layout, cluster)) if modelled else {}))
    return rows


def _modelled(cost: StepCost) -> dict[str, Any]:
    return {
        "model_step_ms": 1e3 * cost.seconds,
        "model_collectives": sum(collective.count for collective in cost.collectives),
        "model_mb": sum(collective.bytes for collective in cost.collectives) / 1e6,
        "model_exchange_ms": 1e3 * sum(collective.seconds for collective in cost.collectives),
    }
