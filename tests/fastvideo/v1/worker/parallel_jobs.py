"""The stage job on two ranks, in processes that stay or in those of a real torchrun, and what it is held against."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.objects.state_file import unpack_state
from fastvideo.v1.dataset.plan.planning import plan_run
from fastvideo.v1.dataset.progress.ledger import read_ledger
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.shards import write_shards
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker import stage_job
from fastvideo.v1.worker.failures import JobFailed, JobFailure, Preempted
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.torchrun import launch
from tests.fastvideo.v1.distributed.processes import run_ranks
from tests.fastvideo.v1.worker.faulty_stage_job import faulty

PROMPTS = ["a red circle moves left", "white star grows, navy background", "a cyan ball rises on gray"]
DATA = {"num_gpus": 2}
LAYOUTS = {"data": DATA, "cfg": DATA | {"cfg_size": 2}, "ring": DATA | {"sp_size": 2, "ring_size": 2}}
TOLERANCE = 1e-5  # max|a - b| / max|b|
_WAIT = {"rank_timeout": 100}
Faults = Sequence[dict[str, Any]]
Events = list[dict[str, Any]]


def make_config(folder: Path, encoded: Path | None = None, num_prompts: int = 3, steps: int = 3) -> RunConfig:
    """A run whose texts are encoded, or have been by the run in folder ``encoded``."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS[:num_prompts]))
    places = {"prompts": str(folder / "prompts.txt"), "output": str(folder / "out")}
    sampling = {"num_inference_steps": steps, "num_frames": 5}
    config = parse_config({**places, "engine": {"device": "cpu"}, "sampling": sampling})
    if encoded is None:
        run_alone(config, Phase.ENCODE)
    else:
        shutil.copytree(encoded / "out" / "encode", folder / "out" / "encode")
    return config


def cut(config: RunConfig, phase: Phase) -> tuple[Run, str]:
    """The run, and the path of the one shard of a phase."""
    plan = plan_run(config)
    (shard,) = (shard for shard in write_shards(plan.run, plan.scan, config, 1) if shard.phase is phase)
    return plan.run, shard.path


def run_alone(config: RunConfig, phase: Phase) -> Run:
    """A phase in this process."""
    run, shard = cut(config, phase)
    before = signal.getsignal(signal.SIGTERM)
    worker = GPUWorker(FastVideoArgs(device="cpu"), [phase])
    stage_job.run_stage_job(run, phase, shard, worker, JobSettings())
    signal.signal(signal.SIGTERM, before)
    return run


@dataclass(frozen=True)
class Ended:
    """What the ranks of a job told, and the error that ended each, None where none did."""

    run: Run
    events: Events
    errors: list[str | None]

    def named(self, name: str) -> Events:
        return [event for event in self.events if event["event"] == name]


def run_in_step(
    config: RunConfig, engine: dict[str, int], faults: Faults = (), phase: Phase = Phase.DENOISE, **settings: Any
) -> Ended:
    """A phase in two processes that stay, each of which does what it would under torchrun."""
    run, shard = cut(config, phase)
    return run_shard(run, phase, shard, engine, faults, **settings)


def run_shard(
    run: Run, phase: Phase, shard: str, engine: dict[str, Any], faults: Faults = (), **settings: Any
) -> Ended:
    answers = run_ranks(2, _run_rank, _arguments(run, phase, shard, engine, settings), faults)
    return Ended(run, [event for events, _ in answers for event in events], [error for _, error in answers])


def _run_rank(rank: int, arguments: list[str], faults: Faults) -> tuple[Events, str | None]:
    events: Events = []
    before = signal.getsignal(signal.SIGTERM)
    tell = patch.object(stage_job, "emit", lambda event, **values: events.append({"event": event, **values}))
    try:
        with tell, faulty(rank, faults, seconds=0.0):
            stage_job.main(arguments)
    except (RuntimeError, Preempted) as error:
        return events, f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGTERM, before)
    return events, None


@dataclass(frozen=True)
class Lost:
    """How a job ended, and how many seconds after the last that its rank 1 told."""

    failure: JobFailure | None
    seconds: float


def launch_faulty(config: RunConfig, engine: dict[str, int], faults: Faults, **settings: Any) -> Lost:
    """Denoises on two ranks of a real torchrun."""
    run, shard = cut(config, Phase.DENOISE)
    arguments = _arguments(run, Phase.DENOISE, shard, engine, settings)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FAULTS": json.dumps(faults), "FAULT_SECONDS": "0.1"}
    heard, failure = [time.monotonic()], None

    def on_event(event: dict[str, Any]) -> None:
        if event.get("rank") == 1:
            heard.append(time.monotonic())

    try:
        launch("faulty_stage_job", arguments, nproc=2, log=print, on_event=on_event, timeout=280, env=env)
    except JobFailed as failed:
        failure = failed.failure
    return Lost(failure, time.monotonic() - heard[-1])


def _arguments(run: Run, phase: Phase, shard: str, engine: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    arguments = ["--output", run.output.uri(""), "--run", run.name, "--phase", str(phase), "--shard", shard]
    return [*arguments, "--engine", json.dumps(engine), "--settings", json.dumps(_WAIT | settings)]


def latents(run: Run) -> dict[str, bytes]:
    """The object of each sample that is done."""
    key = run.keys[Phase.DENOISE]
    ids = read_ledger(run, Phase.DENOISE)["id"].to_pylist()
    return {id: run.objects.read(object_path(Phase.DENOISE, key, id)) for id in ids}


def error(made: dict[str, bytes], expected: dict[str, bytes]) -> float:
    """The largest relative difference of latents."""
    assert made.keys() == expected.keys() and made
    pairs = [(unpack_state(made[id], id)[0]["latents"], unpack_state(expected[id], id)[0]["latents"]) for id in made]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def saved_steps(config: RunConfig) -> list[int]:
    """The step after which each sample was left."""
    folder = Path(config.output).parent
    files = folder.rglob("*.step.safetensors")
    return [unpack_state(path.read_bytes(), path.name)[1]["step_index"] for path in files]
