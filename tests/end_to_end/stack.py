"""`make stack` as a user runs it, and its server's word on what happens there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from fastvideo.v1.worker.process import marked_processes
from flows.stack import MARK
from tests.s3_servers import free_port, free_weed_ports

START_SECONDS = 900.0
_LOCKED_SECONDS = 120.0


@dataclass(frozen=True)
class RunningStack:
    """``env`` is what its environment file says; ``output`` a file with what it printed."""

    home: Path
    process: "subprocess.Popen[bytes]"
    output: Path
    env: Mapping[str, str]

    def processes(self) -> list[psutil.Process]:
        """All that it started, orphans included."""
        return marked_processes(MARK, str(self.home))

    def find(self, *words: str) -> list[psutil.Process]:
        """Those whose command line has all of ``words``, the newest first."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if all(any(word in part for part in process.cmdline()) for word in words):
                    found.append((process.create_time(), process))
        return [process for _, process in sorted(found, key=lambda one: -one[0])]

    def api(self, path: str, body: Mapping[str, Any] | None = None, method: str = "POST") -> Any:
        """The answer of the Prefect server, asked again while its database is locked, as Prefect's own clients do."""
        url, deadline = f"{self.env['PREFECT_API_URL']}/{path}", time.monotonic() + _LOCKED_SECONDS
        while True:
            answer = httpx.request(method, url, json=body or {}, trust_env=False, timeout=120)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                answer.raise_for_status()
                return answer.json() if answer.content else None
            time.sleep(1)

    def said(self) -> str:
        return self.output.read_text()


@contextmanager
def running_stack(home: Path, workers: int, **env: str) -> Iterator[RunningStack]:
    """A stack with every port its own; ends as with Ctrl-C, and nothing of it may be left."""
    output = home.with_suffix(".out")
    ports = ["--port", str(free_port()), "--s3-port", str(free_weed_ports()[0])]
    command = [sys.executable, "-m", "flows.stack", "--home", str(home), *ports, "--workers", str(workers)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C ends it" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        lines = (home / "environment").read_text().splitlines()
        stack = RunningStack(home, process, output, dict(line.split("=", 1) for line in lines))
        yield stack
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, output.read_text()
        assert stack.processes() == [], "left behind"
    finally:
        process.kill()
        process.wait()
        for one in marked_processes(MARK, str(home)):
            one.kill()


def wait_until(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """The first true answer of ``condition``, asked often."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"it did not happen: {what}"
        time.sleep(0.2)
    return answer
