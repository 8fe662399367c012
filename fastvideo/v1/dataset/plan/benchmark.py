"""Time and peak memory of planning many prompts and of scanning many finished objects."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastvideo.v1.dataset.config import RunConfig
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.scan import read_index
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.pipelines.phase import Phase


def bench_planning(num_prompts: int = 1_000_000, num_objects: int = 200_000) -> dict[str, float]:
    """Seconds and peak MiB of three steps, each in a process of its own, on local disk.

    ``plan``: a first plan of ``num_prompts`` distinct prompts. ``replan``: the same again. ``scan``: the status of the
    run once ``num_objects`` of its videos exist.
    """
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        with prompts.open("w") as file:
            for number in range(num_prompts):
                prompt = f"Scene {number}: a paper boat drifts down a quiet street after the rain, filmed at eye level"
                file.write(json.dumps({"prompt": prompt, "guidance": 5.0 + number % 3}) + "\n")
        output = f"{folder}/output"
        figures: dict[str, float] = {"num_prompts": num_prompts, "num_objects": num_objects}
        figures |= _measure("plan", _plan, str(prompts), output)
        figures |= _measure("replan", _plan, str(prompts), output)
        _measure("", _make_objects, output, str(num_objects))
        return figures | _measure("scan", _scan, output, "")


def _plan(prompts: str, output: str) -> None:
    plan_run(RunConfig(prompts=prompts, output=output))


def _scan(output: str, _: str) -> None:
    run_status(output)


def _make_objects(output: str, count: str) -> None:
    run = open_run(output)
    for id in read_index(run)["id"][: int(count)].to_pylist():
        path = Path(output) / object_path(Phase.DECODE, run.keys[Phase.DECODE], id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def _measure(name: str, step: Callable[[str, str], None], *arguments: str) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        seconds, megabytes = pool.apply(_timed, (step, *arguments))
    return {f"{name}_seconds": seconds, f"{name}_peak_mib": megabytes}


def _timed(step: Callable[[str, str], None], first: str, second: str) -> tuple[float, float]:
    start = time.monotonic()
    step(first, second)
    # Not getrusage: its peak is no less than that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return time.monotonic() - start, int(peak) / 1024
