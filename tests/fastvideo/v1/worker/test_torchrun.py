"""A real torchrun is started: 4 s a launch on two cores, so launches run side by side where they can."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure
from fastvideo.v1.worker.process import JOB_VARIABLE, marked_processes
from fastvideo.v1.worker.torchrun import NodeSettings, launch, node_settings, parse_event

pytestmark = pytest.mark.slow

JOBS = Path(__file__).parent
ENV = {"PYTHONPATH": os.pathsep.join([str(JOBS), *sys.path]), "OMP_NUM_THREADS": "1"}


def run_job(*actions, nproc=1, timeout=120.0, stop=None, env=None, hang_seconds=30.0, grace=10.0, held_files=()):
    """What the job logged, its events, and how it failed (None if it did not)."""
    logged, events = [], []
    try:
        launch(
            "jobs",
            actions,
            nproc=nproc,
            log=logged.append,
            on_event=events.append,
            timeout=timeout,
            env=ENV | (env or {}),
            stop=stop,
            hang_seconds=hang_seconds,
            grace=grace,
            held_files=held_files,
        )
    except JobFailed as error:
        return "\n".join(logged), events, error.failure
    return "\n".join(logged), events, None


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"event": "done", "seconds": 1.5}', {"event": "done", "seconds": 1.5}),
        ('[default0]:{"event": "done"}', {"event": "done"}),
        ('[default12]:{"event": "done"}[default12]:', {"event": "done"}),
        ('[default0]:[default0]:{"event": "say [default0]:"}', {"event": "say [default0]:"}),
        ('{"other": 1}', None),
        ('{"event": "cut', None),
        ('{"event": 1} and more', None),
        ("[1, 2]", None),
        ("plain text", None),
    ],
)
def test_events_are_told_from_other_lines(line, event):
    assert parse_event(line) == event


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Several launches at once, by name."""
    met = [f"meet={tmp_path_factory.mktemp('met')}" for _ in range(3)]
    asked, alive = (tmp_path_factory.mktemp("node") / name for name in ("asked", "alive"))
    lock = tmp_path_factory.mktemp("locks") / "lock"
    held = os.open(lock, os.O_RDONLY | os.O_CREAT)
    two = {"nproc": 2}
    says = ["--run", "--max-restarts", "event=loaded", f"holds={lock}", "say=hello there", "event=done"]
    jobs = {
        "two ranks": (says, two | {"held_files": (held,)}),
        "rank raises": (["say=before", "raise=ValueError"], {}),
        "killed alone": (["say=last words", "kill=0"], {}),
        "rank killed": (["say=last words", met[0], "kill=1", "sleep=600"], two),
        "rank stopped": ([met[1], "stop=1", "sleep=600"], two | {"hang_seconds": 2.0}),  # nobody waits for it
        "node asked": ([met[2], "ignore_sigterm", f"touch={asked}", "ask=0", f"live={alive}"], two | {"grace": 1.0}),
    }
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = {name: pool.submit(run_job, *actions, **options) for name, (actions, options) in jobs.items()}
        results = {name: future.result() for name, future in futures.items()}
    os.close(held)
    return results | {"seconds left": alive.stat().st_mtime - asked.stat().st_mtime}


def test_events_and_output_of_every_rank_arrive(outcomes):
    log, events, failure = outcomes["two ranks"]
    assert failure is None
    said = ["True", "done", "loaded"]  # that it holds the file is true
    assert sorted((event["event"], event["rank"]) for event in events) == [
        (word, rank) for word in said for rank in (0, 1)
    ]
    assert log.count("hello there") == 2
    assert '"event"' not in log


def test_a_raising_rank_tells_message_and_cause(outcomes):
    """Causes of other exceptions: see test_failures.py."""
    _, _, failure = outcomes["rank raises"]
    assert (failure.cause, failure.message) == (Cause.BAD_INPUT, "ValueError: a ValueError")
    assert "Traceback" in failure.details and "_error(value)" in failure.details


@pytest.mark.parametrize("name", ["killed alone", "rank killed"])
def test_a_killed_rank_is_infrastructure(outcomes, name):
    log, _, failure = outcomes[name]
    assert failure.cause is Cause.INFRASTRUCTURE
    assert "no error file" in failure.message
    assert "last words" in log


def test_a_rank_that_is_stopped_for_good_ends_the_job(outcomes):
    _, _, failure = outcomes["rank stopped"]
    assert failure.cause is Cause.INFRASTRUCTURE
    assert "of the job has been stopped for 2 s (SIGSTOP?)" in failure.message


def test_torchrun_leaves_its_ranks_the_same_grace(outcomes):
    """A node that is taken away asks torchrun itself."""
    assert outcomes["node asked"][2].cause is Cause.PREEMPTED
    assert outcomes["seconds left"] < 15  # 1 s was granted


def test_timeout_stop_and_lost_torchrun_leave_no_process(tmp_path, monkeypatch):
    """Jobs that would sleep for ever; their ranks ignore SIGTERM."""
    job_ids = {}
    monkeypatch.setattr("fastvideo.v1.worker.torchrun.kill_job", _remembering(job_ids))
    stop = threading.Event()
    forever, brief = ["ignore_sigterm", "sleep=600"], {"grace": 0.5}
    with ThreadPoolExecutor(3) as pool:
        timed = pool.submit(run_job, *forever, **brief, timeout=1.0)
        stopped = pool.submit(run_job, f"touch={tmp_path / 'a'}", *forever, **brief, stop=stop)
        orphaned = pool.submit(run_job, f"touch={tmp_path / 'b'}", *forever, **brief, nproc=2)
        wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists(), 120)
        stop.set()
        stopped_failure = stopped.result(timeout=60)[2]
        timed_failure = timed.result(timeout=60)[2]
        (agent,) = _agents()
        os.kill(agent, signal.SIGKILL)
        lost_failure = orphaned.result(timeout=60)[2]
        frozen = pool.submit(run_job, *forever, grace=60.0, nproc=2, hang_seconds=1.0)
        wait_for(_agents, 60)
        os.kill(*_agents(), signal.SIGSTOP)
        frozen_failure = frozen.result(timeout=60)[2]
    assert timed_failure.cause is Cause.OUT_OF_TIME and "1 s (job_timeout)" in timed_failure.message
    assert stopped_failure == JobFailure(Cause.PREEMPTED, "stopped on request")
    assert lost_failure.cause is Cause.INFRASTRUCTURE and "SIGKILL" in lost_failure.message
    assert frozen_failure == JobFailure(Cause.INFRASTRUCTURE, "the job has been stopped for 1 s (SIGSTOP?)")
    assert len(job_ids) == 4
    assert not [process for job_id in job_ids for process in marked_processes(JOB_VARIABLE, job_id)]


def test_a_job_that_does_not_end_on_sigkill_is_infrastructure(monkeypatch):
    """One that sits in a driver; here its only process has ended, but leaves a child with its output behind."""

    def give_up(job_id):
        raise TimeoutError("processes [7] do not end on SIGKILL")

    monkeypatch.setattr("fastvideo.v1.worker.torchrun.kill_job", give_up)
    monkeypatch.setattr("fastvideo.v1.worker.torchrun._DRAIN_SECONDS", 0.2)
    log, _, failure = run_job("say=last words", "leave=3", timeout=60.0)
    assert failure == JobFailure(Cause.INFRASTRUCTURE, "processes [7] do not end on SIGKILL")
    assert "last words" in log


def _remembering(job_ids):
    from fastvideo.v1.worker.process import kill_job

    def kill(job_id):
        job_ids[job_id] = True
        kill_job(job_id)

    return kill


def _agents():
    """Process ids of the torchruns that this process started."""
    return [child.pid for child in psutil.Process().children() if "fastvideo.v1.worker.agent" in child.cmdline()]


@pytest.mark.parametrize(("nproc", "num_processes"), [(1, 1), (2, 3)], ids=["alone", "under torchrun"])
def test_ranks_die_with_what_started_them(tmp_path, nproc, num_processes):
    """Nobody is left to clean up here: the kernel ends torchrun with the launcher, and then the ranks with torchrun. An
    only rank goes with the launcher, here before it is done with its imports.
    """
    if nproc == 1:
        lines = ["import pathlib, time", f"pathlib.Path({str(tmp_path / 'up')!r}).touch()", "time.sleep(600)"]
        (tmp_path / "slow_to_import.py").write_text("\n".join(lines))
        job = ("slow_to_import", [])
    else:
        job = ("jobs", [f"touch={tmp_path / 'up'}", "sleep=600"])
    code = "from fastvideo.v1.worker.torchrun import launch; "
    code += f"launch(*{job!r}, nproc={nproc}, log=print, on_event=print)"
    env = {**os.environ, **ENV, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}"}
    launcher = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "up").exists, 120)
        processes = psutil.Process(launcher.pid).children(recursive=True)
        assert len(processes) == num_processes
        assert JOB_VARIABLE in processes[0].environ()
        launcher.kill()
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert not alive
    finally:
        launcher.kill()
        launcher.wait()


def test_a_job_of_two_nodes_is_launched_once(tmp_path):
    """Two agents on this host stand for two nodes, and a script for srun, which ends as soon as one of them fails. The
    second finds no folder of the launcher's.
    """
    launcher = tmp_path / "launcher"
    (elsewhere := tmp_path / "tmp").mkdir()
    second = f'TMPDIR={elsewhere} "${{@//fastvideo-job-/none-}}" &'
    launcher.write_text(f'#!/bin/bash\n"$@" &\n{second}\nwait -n && wait -n\n')
    launcher.chmod(0o755)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    nodes = {
        "FASTVIDEO_NNODES": "2",
        "FASTVIDEO_RDZV_ENDPOINT": endpoint,
        "FASTVIDEO_NODE_LAUNCHER": f"{launcher}",
    }
    folder = tmp_path / "met"
    folder.mkdir()
    log, events, failure = run_job("event=up", f"meet={folder}", "kill=3", "sleep=600", nproc=4, env=nodes)
    assert sorted(event["rank"] for event in events) == [0, 1, 2, 3], log
    assert failure is not None and failure.cause is Cause.INFRASTRUCTURE
    assert "job_timeout" not in failure.message


def test_one_process_is_refused_where_there_are_two_nodes():
    nodes = {name: "x" for name in ("FASTVIDEO_RDZV_ENDPOINT", "FASTVIDEO_NODE_LAUNCHER")}
    with pytest.raises(ValueError, match="num_gpus=1 must be divisible by FASTVIDEO_NNODES=2; nearest: 2"):
        run_job(env={**nodes, "FASTVIDEO_NNODES": "2"})


def test_nodes_without_a_place_to_meet_are_refused():
    with pytest.raises(ValueError, match=r"FASTVIDEO_RDZV_ENDPOINT='', .* set all three, or none for one node"):
        node_settings({"FASTVIDEO_NNODES": "2", "FASTVIDEO_NODE_LAUNCHER": "srun"})
    with pytest.raises(ValueError, match="num_gpus=7 must be divisible by FASTVIDEO_NNODES=2; nearest: 8"):
        NodeSettings(count=2).processes_of_each(7)
