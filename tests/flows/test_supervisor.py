"""Programs are started again when they end, and none outlives its supervisor, however that ends."""

import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from fastvideo.v1.worker.process import marked_processes
from flows.supervisor import Program, Supervisor

VARIABLE = "FASTVIDEO_TEST_STACK"
# Counts its starts, and leaves a child in a session of its own behind.
COUNTING = """
import subprocess, sys, time
open(sys.argv[1], "a").write("x")
subprocess.Popen(["sleep", "60"], start_new_session=True)
time.sleep(60)
"""
IN_A_PROCESS = """
import sys
from pathlib import Path
from flows.supervisor import Program, Supervisor
supervisor = Supervisor({}, (sys.argv[1], sys.argv[2]), Path(sys.argv[3]), print)
supervisor.start(Program(name="sleeper", command=["/bin/sleep", "60"]))
print("started", flush=True)
supervisor.watch()
"""


@pytest.fixture
def mark() -> tuple[str, str]:
    return VARIABLE, uuid.uuid4().hex


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_what_is_killed_starts_again_and_ends_with_all_it_started(mark: tuple[str, str], tmp_path: Path) -> None:
    starts, said = tmp_path / "starts", list[str]()
    supervisor = Supervisor({}, mark, tmp_path, said.append)
    command = [sys.executable, "-c", COUNTING, str(starts)]
    supervisor.start(Program(name="counting", command=command, is_ready=starts.exists))
    wait_until(lambda: len(marked_processes(*mark)) == 2)
    [first] = [process for process in marked_processes(*mark) if process.name() != "sleep"]
    first.kill()

    def is_back() -> bool:
        supervisor.look_after()
        return starts.read_text() == "xx" and len(marked_processes(*mark)) == 3  # its child of before lives on

    wait_until(is_back)
    assert said == ["counting was ended by SIGKILL; it starts again in 1 s"]
    supervisor.end()
    assert marked_processes(*mark) == []


def test_a_killed_supervisor_leaves_no_program(mark: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_PROCESS, *mark, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        wait_until(lambda: [one.name() for one in marked_processes(*mark)] == ["sleep"])
        psutil.Process(process.pid).kill()
        wait_until(lambda: not marked_processes(*mark), seconds=5)


def test_a_program_that_cannot_start_says_why(mark: tuple[str, str], tmp_path: Path) -> None:
    supervisor = Supervisor({}, mark, tmp_path, print)
    command = [sys.executable, "-c", "raise SystemExit('no room for 4 ports')"]
    with pytest.raises(ValueError, match="store did not start: no room for 4 ports"):
        supervisor.start(Program(name="store", command=command, is_ready=lambda: False))
