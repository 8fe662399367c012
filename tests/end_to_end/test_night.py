"""A night of the factory: a schedule fires, and while its run is at work one part after another is killed.

Two workers, a process pool, a Prefect server and SeaweedFS, all by `make stack`'s own command.
``FASTVIDEO_TEST_NIGHT=full`` runs 300 samples in 12 shards.
"""

import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.progress.status import run_status
from fastvideo.v1.dataset.runs.run import open_run
from fastvideo.v1.pipelines.phase import ALL_PHASES
from tests.end_to_end.outputs import made_more_than_once
from tests.end_to_end.stack import RunningStack, running_stack, wait_until
from tests.fastvideo.v1.test_plugins import write_dist_info

REPOSITORY = Path(__file__).parents[2]
OUTPUT = "s3://videos/night"


@dataclass(frozen=True)
class Night:
    """``patience`` counts seconds; ``every`` samples something is killed."""

    samples: int
    shard_size: int
    every: int
    patience: float


SMALL = Night(samples=12, shard_size=4, every=2, patience=600)
FULL = Night(samples=300, shard_size=25, every=50, patience=5400)
NIGHT = FULL if os.environ.get("FASTVIDEO_TEST_NIGHT") == "full" else SMALL

pytestmark = pytest.mark.timeout(NIGHT.patience + 1200)


@pytest.fixture(scope="module")
def counted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded weights under a pipeline that notes what it begins."""
    folder = tmp_path_factory.mktemp("model") / "counted"
    shutil.copytree(EMBEDDED_MODEL, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "CountedPipeline"}))
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line for each video that a process began to denoise or decode."""
    file = tmp_path_factory.mktemp("night") / "begun"
    file.touch()
    return file


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, begun: Path) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("stack")
    write_dist_info(folder / "site", "counted", "counted = tests.counted_pipeline:register")
    env = {
        "PYTHONPATH": f"{REPOSITORY}:{folder / 'site'}",
        "FASTVIDEO_TEST_BEGUN": str(begun),
        "OMP_NUM_THREADS": "1",
    }
    with running_stack(folder / "home", workers=2, **env) as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in stack.env.items():
            patch.setenv(name, value)
        yield stack


def schedule_run(stack: RunningStack, model: Path) -> str:
    """Has the deployment's own schedule fire once, in a few seconds; returns the id of its flow run."""
    [deployment] = [one for one in stack.api("deployments/filter") if one["name"] == "on-pools"]
    sampling = {"num_inference_steps": 4, "height": 64, "width": 64, "num_frames": 5}
    config = {
        **deployment["parameters"]["config"],
        "prompts": "vbench",
        "limit": NIGHT.samples,
        "output": OUTPUT,
        "engine": {"model_path": str(model)},
        "sampling": sampling,
        "shard_size": NIGHT.shard_size,
        "decode_shard_size": 2 * NIGHT.shard_size,
        "wave_size": 2,
    }
    path = f"deployments/{deployment['id']}"
    stack.api(path, {"parameters": {"config": config}}, "PATCH")
    soon = datetime.now(UTC) + timedelta(seconds=5)
    # A server under load may look at schedules too late for the first time: then the next has to be near.
    schedule = {"interval": 60, "anchor_date": soon.isoformat(), "timezone": "UTC"}
    [made] = stack.api(f"{path}/schedules", [{"schedule": schedule, "active": True}])  # type: ignore[arg-type]

    def fired() -> str | None:
        runs = flow_runs(stack, "generate-dataset")
        return next((run["id"] for run in runs if run["state"]["type"] not in ("SCHEDULED", "CANCELLED")), None)

    run_id = str(wait_until(fired, "the schedule fires", 300))
    stack.api(f"{path}/schedules/{made['id']}", method="DELETE")  # with the runs that it would start next
    return run_id


def flow_runs(stack: RunningStack, flow: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.api("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    return found


def count(begun: Path, phase: str) -> int:
    return begun.read_text().count(f"{phase}\t")


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def flows_of(processes: list[psutil.Process]) -> dict[str, psutil.Process]:
    """The flow runs that these processes are at work on."""
    flows = {}
    for process in processes:
        with suppress(psutil.Error):
            if "prefect.engine" in process.cmdline():
                flows[process.environ()["PREFECT__FLOW_RUN_ID"]] = process
    return flows


def kill_a_wave(stack: RunningStack) -> str:
    """kill -9 of the flow process that runs a wave; returns the id of its flow run."""
    flows = flows_of(stack.processes())
    waves = [run["id"] for run in flow_runs(stack, "run-wave") if run["state"]["type"] == "RUNNING"]
    [id, *_] = [wave for wave in waves if wave in flows]
    kill(flows[id])
    return str(id)


def kill_a_worker(stack: RunningStack, run_id: str) -> set[str]:
    """kill -9 of the worker that did not start ``run_id``; returns the flow runs that it had started.

    They notice, and leave. The run itself would go on, too, but only after a quarter of an hour: so long Prefect's
    automations wait for the event of a scheduled run's first state, which is never sent.
    """
    for worker in stack.find("worker", "--pool"):
        flows = flows_of(worker.children())
        if run_id not in flows:
            kill(worker)
            return set(flows)
    raise AssertionError("every worker is at work on the run")


def test_a_night(stack: RunningStack, counted_model: Path, begun: Path) -> None:
    run_id = schedule_run(stack, counted_model)

    def wait_for(samples: int) -> None:
        wait_until(lambda: count(begun, "denoise") >= samples, f"{samples} samples begun", NIGHT.patience)

    wait_for(NIGHT.every)
    lost = {kill_a_wave(stack)}
    wait_for(2 * NIGHT.every)
    kill(wait_until(lambda: stack.find("worker.stage_job", "denoise"), "a denoise job", 120)[0])
    wait_for(3 * NIGHT.every)
    kill(stack.find("weed")[0])
    wait_for(4 * NIGHT.every)
    lost |= kill_a_worker(stack, run_id)
    state = wait_until(lambda: ended(stack, run_id), "the run ends", NIGHT.patience)

    assert state["type"] == "COMPLETED", state
    check_data_set()
    check_effort(begun, killed_jobs=1 + len(lost))
    check_story(stack, run_id, lost)
    assert stack.said().count("was ended by SIGKILL; it starts again") == 2, stack.said()
    assert len(stack.find("worker", "--pool")) == 2 and stack.find("weed"), "both came back"


def ended(stack: RunningStack, run_id: str) -> dict[str, Any] | None:
    state: dict[str, Any] = stack.api(f"flow_runs/{run_id}", method="GET")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CANCELLED") else None


def check_data_set() -> None:
    """Every sample is there once, in every phase, with the bytes that the ledger speaks of."""
    status = run_status(OUTPUT)
    assert status.exit_code == 0
    assert {phase: part.done for phase, part in status.phases.items() if phase != "encode"} == {
        "denoise": NIGHT.samples,
        "decode": NIGHT.samples,
    }
    run = open_run(OUTPUT)
    for phase in ALL_PHASES:
        rows = read_ledger(run, phase).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows) == status.phases[phase].done
        paths = [object_path(phase, run.keys[phase], row["id"]) for row in rows]
        for row, data in zip(rows, run.objects.read_many(paths), strict=True):
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["bytes"])
    assert made_more_than_once(OUTPUT) == []


def check_effort(begun: Path, killed_jobs: int) -> None:
    """Nothing was computed twice but the one sample that each killed job had in hand."""
    begins = Counter(begun.read_text().splitlines())
    again = {line: times for line, times in begins.items() if times > 1}
    assert len(begins) == 2 * NIGHT.samples
    assert sum(times - 1 for times in again.values()) <= killed_jobs, again


def check_story(stack: RunningStack, run_id: str, lost: set[str]) -> None:
    """What Prefect's UI says is what happened; ``lost`` are the flow runs that were killed, or whose worker was."""
    [run] = [one for one in flow_runs(stack, "generate-dataset") if one["name"] == OUTPUT]
    assert (run["id"], run["auto_scheduled"]) == (run_id, True)
    states = {wave["id"]: wave["state"]["type"] for wave in flow_runs(stack, "run-wave")}
    crashed = {id for id, state in states.items() if state == "CRASHED"}
    assert crashed and crashed <= lost, states
    assert set(states.values()) == {"CRASHED", "COMPLETED"}, states
    tasks = stack.api("task_runs/filter", {"limit": 200})
    retried = [task for task in tasks if task["run_count"] == 2 and task["name"].startswith("denoise")]
    assert retried, "the shard whose job was killed"
    assert all(task["state"]["type"] == "COMPLETED" for task in retried if task["flow_run_id"] not in lost)
    artifacts = {artifact["key"]: artifact for artifact in stack.api("artifacts/latest/filter", {"limit": 200})}
    name = open_run(OUTPUT).name
    assert float(artifacts[f"progress-{name}"]["data"]) == 100.0
    assert "](data:image/jpeg;base64," in artifacts[f"contact-sheet-{name}"]["data"]
