"""The stage job on two processes: the same objects as on one, in step, whatever happens to a rank."""

import json
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastvideo.v1.dataset.config import RunConfig, parse_config
from fastvideo.v1.dataset.failures import read_failures
from fastvideo.v1.dataset.layout import object_path
from fastvideo.v1.dataset.ledger import read_ledger
from fastvideo.v1.dataset.phase_layouts import with_layout
from fastvideo.v1.dataset.planning import plan_run
from fastvideo.v1.dataset.run import Run
from fastvideo.v1.dataset.scan import scan
from fastvideo.v1.dataset.shards import Shard, layout_of, read_shard, write_shards
from fastvideo.v1.dataset.state_file import unpack_state
from fastvideo.v1.distributed.choice import START_SECONDS, LayoutChoice, Tail
from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs import JobSettings
from fastvideo.v1.worker.process import AGENT_VARIABLE
from fastvideo.v1.worker.stage_job import run_stage_job
from fastvideo.v1.worker.torchrun import launch

pytestmark = pytest.mark.slow

STAGE_JOB = "fastvideo.v1.worker.stage_job"
ENV = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
PROMPTS = ["a red circle moves left", "white star grows, navy background", "a cyan ball rises on gray"]
DATA = {"num_gpus": 2}
LAYOUTS = {"data": DATA, "cfg": DATA | {"cfg_size": 2}, "ring": DATA | {"sp_size": 2, "ring_size": 2}}
TOLERANCE = 1e-5  # max|a - b| / max|b|


@pytest.fixture(autouse=True)
def restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def make_config(folder: Path, prompts: list[str] = PROMPTS, steps: int = 3) -> RunConfig:
    """A run whose texts are encoded."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(prompts))
    places = {"prompts": str(folder / "prompts.txt"), "output": str(folder / "out")}
    config = parse_config({**places, "engine": {"device": "cpu"}, "sampling": {"num_inference_steps": steps}})
    run_alone(config, Phase.ENCODE)
    return config


def cut(config: RunConfig, phase: Phase) -> tuple[Run, str]:
    plan = plan_run(config)
    (shard,) = (shard for shard in write_shards(plan.run, plan.scan, config, 1) if shard.phase is phase)
    return plan.run, shard.path


def run_alone(config: RunConfig, phase: Phase) -> Run:
    run, shard = cut(config, phase)
    run_stage_job(run, phase, shard, GPUWorker(FastVideoArgs(device="cpu"), [phase]), JobSettings())
    return run


def job_arguments(config: RunConfig, engine: dict[str, int], phase: Phase, **settings: Any) -> tuple[Run, list[str]]:
    run, shard = cut(config, phase)
    arguments = ["--output", config.output, "--run", run.name, "--phase", str(phase), "--shard", shard]
    return run, [*arguments, "--engine", json.dumps(engine), "--settings", json.dumps(settings)]


class Job:
    """One phase in two processes under a real torchrun, beside the test; with ``faults`` for a faulty one."""

    def __init__(
        self,
        config: RunConfig,
        engine: dict[str, int],
        faults: list[dict[str, Any]],
        seconds: float = 0.0,
        phase: Phase = Phase.DENOISE,
        hang_seconds: float = 30.0,
        **settings: Any,
    ) -> None:
        self.run, arguments = job_arguments(config, engine, phase, **{"rank_timeout": 20} | settings)
        self.events: list[dict[str, Any]] = []
        self.log: list[str] = []
        self._hang_seconds = hang_seconds
        env = ENV | {"FAULTS": json.dumps(faults), "FAULT_SECONDS": str(seconds)}
        self._thread = ThreadPoolExecutor(1)
        self._ended = self._thread.submit(self._launch, arguments, env)

    def _launch(self, arguments: list[str], env: dict[str, str]) -> JobFailure | None:
        told = {"log": self.log.append, "on_event": self.events.append}
        limits = {"timeout": 300, "hang_seconds": self._hang_seconds}
        try:
            launch("faulty_stage_job", arguments, nproc=2, env=env, **told, **limits)
        except JobFailed as failed:
            return failed.failure
        return None

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def failure(self, seconds: float = 100) -> JobFailure | None:
        """How it ended, after all that it said."""
        ended = self._ended.result(timeout=seconds)
        self._thread.shutdown()
        return ended

    def wait_step(self, step: int) -> "Job":
        """Both ranks have come to ``step`` of a sample."""
        deadline = time.monotonic() + 60
        while {event["rank"] for event in self.named("step") if event["step"] == step} != {0, 1}:
            assert not self._ended.done() and time.monotonic() < deadline, self.log
            time.sleep(0.01)
        return self

    def rank(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        for process in psutil.Process().children(recursive=True):
            environment = process.environ()
            is_ours = AGENT_VARIABLE in environment and self.run.output.uri("") in process.cmdline()
            if is_ours and environment.get("RANK") == str(rank):
                return process
        raise AssertionError(f"no rank {rank}: {self.log}")


def objects(run: Run) -> dict[str, bytes]:
    key = run.keys[Phase.DENOISE]
    ids = read_ledger(run, Phase.DENOISE)["id"].to_pylist()
    return {id: run.objects.read(object_path(Phase.DENOISE, key, id)) for id in ids}


def error(made: dict[str, bytes], expected: dict[str, bytes]) -> float:
    """The largest relative difference of latents."""
    assert made.keys() == expected.keys() and made
    pairs = [(unpack_state(made[id], id)[0]["latents"], unpack_state(expected[id], id)[0]["latents"]) for id in made]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return objects(run_alone(make_config(tmp_path_factory.mktemp("alone")), Phase.DENOISE))


@pytest.mark.parametrize("layout", ["data", "ring"])
def test_two_processes_make_the_latents_of_one(tmp_path, alone, layout):
    job = Job(make_config(tmp_path), LAYOUTS[layout], [])
    assert job.failure() is None, job.log
    made = objects(job.run)
    if layout == "data":
        assert made == alone, "equal to the byte"
    assert error(made, alone) < TOLERANCE
    committed = sorted(event["committed"] for event in job.named("done"))
    assert committed == ([1, 2] if layout == "data" else [0, 3]), "the first rank of a group commits"
    assert len(job.named("committed")) == 3 and not scan(job.run)[Phase.DENOISE].missing


def test_the_last_sample_is_spread_over_the_ranks_that_others_left_idle(tmp_path, alone):
    config = make_config(tmp_path)
    run, sooner = plan_run(config).run, Tail(layout=ParallelLayout(cfg=2), saved=START_SECONDS + 1, reason="a test")
    choice = LayoutChoice(layout=ParallelLayout(data=2), reason="a test", tails={1: sooner})
    shards = write_shards(run, scan(run), config, 1, dict.fromkeys(Phase, choice))

    def start(shard: Shard) -> list[str]:
        engine = with_layout(config.engine, layout_of(read_shard(run, shard.path)))
        arguments = ["--output", config.output, "--run", run.name, "--phase", shard.phase, "--shard", shard.path]
        arguments += ["--engine", json.dumps(asdict(engine))]
        events: list[dict[str, Any]] = []
        launch(STAGE_JOB, arguments, nproc=2, log=print, on_event=events.append, timeout=300, env=ENV)
        return [event["id"] for event in events if event["event"] == "committed"]

    with ThreadPoolExecutor(2) as pool:
        side_by_side, spread = pool.map(start, [shard for shard in shards if shard.phase is Phase.DENOISE])
    assert (len(side_by_side), len(spread)) == (2, 1) and not scan(run)[Phase.DENOISE].missing
    made = objects(run)
    assert all(made[id] == alone[id] for id in side_by_side), "equal to the byte in the layout of all"
    assert error(made, alone) < TOLERANCE, "elsewhere within tolerance"


def test_videos_are_written_by_one_rank(tmp_path):
    config = make_config(tmp_path)
    run_alone(config, Phase.DENOISE)
    job = Job(config, LAYOUTS["cfg"], [], phase=Phase.DECODE)
    assert job.failure() is None, job.log
    assert sorted(event["committed"] for event in job.named("done")) == [0, 3]
    assert not scan(job.run)[Phase.DECODE].missing


def test_a_layout_of_another_number_of_processes_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    worker = GPUWorker(FastVideoArgs(device="cpu", num_gpus=4, sp_size=2, ring_size=2), [Phase.DENOISE])
    with pytest.raises(ValueError, match=r"data=2 x cfg=1 x ring=2 .* as there are, 2; nearest: ") as error:
        worker.init_device()
    assert "\n" not in str(error.value)


def test_what_fails_on_one_rank_is_tried_again_by_all(tmp_path, alone):
    faults = [
        {"rank": 0, "prompt": PROMPTS[0], "step": None, "error": "ValueError", "times": 1},
        {"rank": 1, "prompt": PROMPTS[1], "step": None, "error": "FloatingPointError", "times": 9},
        {"rank": 1, "prompt": PROMPTS[2], "step": None, "error": "FloatingPointError", "times": 1},
    ]
    job = Job(make_config(tmp_path), LAYOUTS["cfg"], faults, tries=2)
    assert job.failure() is None, job.log
    (failed,) = read_failures(job.run, Phase.DENOISE)
    assert (failed["error"], failed["attempts"]) == ("FloatingPointError: a fault", 2)
    assert "faulty_stage_job" in failed["traceback"], "the traceback of the rank where it was"
    assert [event["id"] for event in job.named("failed")] == [failed["id"]]
    assert error(objects(job.run), {id: alone[id] for id in alone if id != failed["id"]}) < TOLERANCE
    for rank in (0, 1):
        assert len([event for event in job.named("step") if event["rank"] == rank]) == 3 * 2 * 3


def test_a_rank_that_raises_or_dies_or_stops_ends_the_job(tmp_path):
    """Each where nobody waits for it but torchrun, or another rank does."""
    broken = [{"rank": 1, "prompt": PROMPTS[0], "step": 2, "error": "RuntimeError", "times": 1}]
    steps = 400
    names = ("raises", "dies", "stops", "fails")
    configs = [make_config(tmp_path / name, PROMPTS[:2], steps) for name in names]
    raising = Job(configs[0], LAYOUTS["cfg"], broken, seconds=0.05)
    dying = Job(configs[1], LAYOUTS["cfg"], [], seconds=0.05)
    stopping = Job(configs[2], DATA, [], seconds=0.05, hang_seconds=2.0)
    alone = [broken[0] | {"error": "ValueError"}]  # the other rank waits in a collective, and never hears of it
    failing = Job(configs[3], LAYOUTS["cfg"], alone, seconds=0.05, rank_timeout=90, failure_seconds=2.0)
    stopping.wait_step(3).rank(1).suspend()
    stopped = time.monotonic()
    dying.wait_step(3).rank(1).kill()
    assert dying.failure(20).cause is Cause.INFRASTRUCTURE
    failure = stopping.failure(20)
    assert time.monotonic() - stopped < 30
    assert failure.cause is Cause.INFRASTRUCTURE
    assert "of the job has been stopped for 2 s (SIGSTOP?)" in failure.message
    failure = raising.failure(20)
    assert (failure.cause, failure.message) == (Cause.INFRASTRUCTURE, "RuntimeError: a fault")
    assert "faulty_stage_job" in failure.details, "the traceback of the rank where it was"
    failure = failing.failure(30)
    assert failure.cause is Cause.INFRASTRUCTURE, "the shard is tried again"
    assert failure.message.startswith("RanksOutOfStep: ValueError: a fault (on rank 1;")
    assert "faulty_stage_job" in failure.details


@pytest.mark.parametrize(("left", "resumed"), [("ring", "data"), ("data", "cfg"), ("cfg", None)], ids=str)
def test_sigterm_on_one_rank_saves_what_another_layout_goes_on_from(tmp_path, left, resumed):
    steps, rank = 25, random.randrange(2)
    config = make_config(tmp_path, PROMPTS[:2], steps)
    job = Job(config, LAYOUTS[left], [], seconds=0.05, checkpoint_every=0)
    job.wait_step(random.randrange(2, 12)).rank(rank).terminate()
    assert job.failure(30).cause is Cause.PREEMPTED
    done = {path.name: unpack_state(path.read_bytes(), path.name)[1]["step_index"] for path in step_files(tmp_path)}
    finished = len(objects(job.run))  # ranks of data keep no step
    assert 1 <= len(done) <= 2 - finished and all(2 <= index < steps for index in done.values())
    if resumed is None:
        run = run_alone(config, Phase.DENOISE)
    else:
        job = Job(config, LAYOUTS[resumed], [])
        assert job.failure() is None, job.log
        ranks_per_sample = 1 if resumed == "data" else 2
        assert len(job.named("step")) == ranks_per_sample * ((2 - finished) * steps - sum(done.values())), (
            "no step is made again"
        )
        run = job.run
    assert not step_files(tmp_path)
    undisturbed = run_alone(make_config(tmp_path / "undisturbed", PROMPTS[:2], steps), Phase.DENOISE)
    assert error(objects(run), objects(undisturbed)) < 10 * TOLERANCE, "over 25 steps"


def step_files(folder: Path) -> list[Path]:
    return list((folder / "out").rglob("*.step.safetensors"))
