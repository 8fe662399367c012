"""The command line as users run it: real processes, which tests may kill."""

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "FASTVIDEO_TEST_MARK"
NUM_PROMPTS = 9
# The first real prompts; a few texts at a time, so that a kill finds some done and some not.
RUN: dict[str, Any] = {
    "prompts": "vbench",
    "limit": NUM_PROMPTS,
    "sampling": {"num_inference_steps": 6, "num_frames": 9},
    "text_batch_size": 3,
}


@dataclass
class Command:
    """One ``fastvideo`` process; whatever it starts carries its mark."""

    process: "subprocess.Popen[str]"
    mark: str

    def finish(self, timeout: float = 400) -> "subprocess.CompletedProcess[str]":
        """Waits for the end; no process of a command outlives it by five seconds, however it ended."""
        self.process.wait(timeout)
        deadline = time.monotonic() + 5
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        lines = [" ".join(process.cmdline()) for process in alive]
        self.kill_all()
        assert not lines, f"left behind: {lines}"
        out, err = self.process.communicate()
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def alive(self) -> list[psutil.Process]:
        """Every living process of the command, orphans and those in sessions of their own included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_all(self) -> None:
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()

    def find(self, kind: str, phase: str) -> psutil.Process | None:
        """The process to kill: the ``flow``, or the ``job`` at work on ``phase``, once there is one."""
        if kind == "flow":
            return psutil.Process(self.process.pid)
        for process in self.alive():
            with suppress(psutil.Error):
                words = process.cmdline()
                if "--phase" in words and words[words.index("--phase") + 1] == phase:
                    return process
        return None


@dataclass(frozen=True)
class FastVideo:
    """Starts ``fastvideo`` commands under one environment."""

    env: Mapping[str, str]

    def start(self, *arguments: object, **env: str) -> Command:
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *map(str, arguments)],
            env={**self.env, **env, MARK: mark},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell's background job ignores SIGINT, and so would what is started in it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return Command(process, mark)

    def __call__(self, *arguments: object, expect: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        ended = self.start(*arguments, **env).finish()
        assert ended.returncode == expect, f"exit code {ended.returncode}: {ended.stdout}{ended.stderr}"
        return ended


def run_arguments(output: str | Path, limit: int = NUM_PROMPTS) -> list[str]:
    """The command line of ``RUN``."""
    values = RUN | {"limit": limit, "output": output}
    sampling = {f"sampling.{name}": value for name, value in values.pop("sampling").items()}
    return ["dataset", "run", *(f"--{name}={value}" for name, value in (values | sampling).items())]
