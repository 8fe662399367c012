"""Times alternatives in one process, turn by turn, so that a drifting clock touches all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative over its rounds."""

    median: float
    low: float
    high: float


def interleave(cases: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Runs each case once a round, in turn, by CUDA events or the wall clock; the caller has warmed them up."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(_time_once(case, device))
    return {name: Timing(statistics.median(times), min(times), max(times)) for name, times in seconds.items()}


def _time_once(case: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        case()
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    case()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000
