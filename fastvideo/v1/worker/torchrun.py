"""Launches a module under torchrun and watches it until every process of it is gone.

Nothing of a job survives :func:`launch`, however it ends: the job's processes carry a mark in their environment and are
looked for by it. If the launching process itself is killed, the kernel kills torchrun and torchrun's ranks
(:func:`~fastvideo.v1.worker.process.die_with_parent`).

A job of one process has nobody to meet: it is started as torchrun would start its rank
(:mod:`~fastvideo.v1.worker.lone_rank`), without the seconds that torchrun takes to start itself.
"""

import json
import os
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fastvideo.v1.shown_text import shown
from fastvideo.v1.worker.failures import Cause, JobFailed, JobFailure, classify
from fastvideo.v1.worker.process import AGENT_VARIABLE, JOB_VARIABLE, StopWatch, kill_job

NNODES_VARIABLE = "FASTVIDEO_NNODES"
RDZV_ENDPOINT_VARIABLE = "FASTVIDEO_RDZV_ENDPOINT"
NODE_LAUNCHER_VARIABLE = "FASTVIDEO_NODE_LAUNCHER"

GRACE_SECONDS = 100.0
"""For a job to save and leave: several steps of the slowest, and less than what infra/ leaves this process."""

_POLL_SECONDS = 0.2
_DRAIN_SECONDS = 5.0  # in which what a job wrote is read to its end; one that cannot be killed never closes its pipe
_LINES_PER_RECORD, _SECONDS_PER_RECORD = 50, 1.0
_PREFIX = re.compile(r"\[default\d+\]:")
_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""What torchrun tells the only rank of a job; the port is any that is free."""


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    nproc: int,
    log: Callable[[str], None],
    on_event: Callable[[dict[str, Any]], None],
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    hang_seconds: float = 30.0,
    grace: float = GRACE_SECONDS,
    held_files: Sequence[int] = (),
) -> None:
    """Runs ``python -m module arguments`` in ``nproc`` ranks, on this host or several (:func:`node_settings`).

    Returns when all of them succeeded.

    Lines of standard output that are JSON objects with an "event" go to ``on_event``, all others to ``log``, several
    to a call; both are called from this thread. ``timeout`` is in seconds. Setting ``stop`` asks the job to end
    (SIGTERM, then SIGKILL after ``grace`` seconds). A process of it that has been stopped (SIGSTOP) for
    ``hang_seconds`` ends it. Its processes inherit ``held_files``, which a job of several hosts cannot have. Raises
    :class:`JobFailed`.
    """
    job_id = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="fastvideo-job-") as folder:
        error_file = Path(folder, "error.json")
        environment = {**os.environ, **(env or {}), JOB_VARIABLE: job_id, "TORCHELASTIC_ERROR_FILE": str(error_file)}
        if nproc == node_settings(environment).count == 1:
            starter = [sys.executable, "-u", "-m", "fastvideo.v1.worker.lone_rank"]
            environment |= {**_ALONE, AGENT_VARIABLE: str(os.getpid())}
        else:
            settings = [str(hang_seconds), str(grace), ",".join(map(str, held_files)) or "-", folder]
            starter = _agent(nproc, environment, job_id, settings)
        output = _Output(log, on_event)
        # Not communicate(): the output is read while the job runs. Its own session, so that Ctrl-C reaches us alone.
        process = subprocess.Popen(
            [*starter, module, *arguments],
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=held_files,
        )
        try:
            output.read(process)
            ended_by_us = _watch(process, output, timeout, stop, StopWatch(hang_seconds))
        finally:
            try:
                _end(process, job_id, grace)
            finally:
                output.finish()
        if ended_by_us:
            raise JobFailed(ended_by_us)
        if process.returncode:
            raise JobFailed(classify(error_file, process.returncode, list(output.tail)))


def _agent(nproc: int, environment: Mapping[str, str], job_id: str, settings: Sequence[str]) -> list[str]:
    """The command that runs what follows it in every rank."""
    nodes = node_settings(environment)
    torchrun = [
        f"--nnodes={nodes.count}",
        f"--nproc-per-node={nodes.processes_of_each(nproc)}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={nodes.endpoint}",
        f"--rdzv-id={job_id}",
        "--max-restarts=0",
        "--tee=3",
        "-m",
        "--",
    ]  # the rest is not torchrun's
    parent = "0" if nodes.launcher else str(os.getpid())
    return [*nodes.launcher, sys.executable, "-m", "fastvideo.v1.worker.agent", parent, *settings, *torchrun]


@dataclass(frozen=True)
class NodeSettings:
    """``launcher`` starts what follows it once on each of ``count`` nodes, which meet at ``endpoint``."""

    count: int = 1
    endpoint: str = "127.0.0.1:0"
    launcher: tuple[str, ...] = ()

    def processes_of_each(self, nproc: int) -> int:
        """Raises ``ValueError`` when the nodes do not divide ``nproc``."""
        if nproc % self.count:
            raise ValueError(
                f"num_gpus={nproc} must be divisible by {NNODES_VARIABLE}={self.count}; "
                f"nearest: {max(1, round(nproc / self.count)) * self.count}"
            )
        return nproc // self.count


def node_settings(environment: Mapping[str, str]) -> NodeSettings:
    """This node alone, or as many as ``FASTVIDEO_NNODES`` says.

    ``FASTVIDEO_NODE_LAUNCHER`` is then a command such as ``srun --ntasks-per-node=1 --kill-on-bad-exit=1``, which has
    to end once one node's part fails, for torchrun on the others would not know; they meet at
    ``FASTVIDEO_RDZV_ENDPOINT``, ``HOST:PORT`` of the first. Raises ``ValueError`` where some of the three are missing.
    """
    names = (NNODES_VARIABLE, RDZV_ENDPOINT_VARIABLE, NODE_LAUNCHER_VARIABLE)
    count, endpoint, launcher = (environment.get(name, "") for name in names)
    if count in ("", "1"):
        return NodeSettings()
    if not (count.isdigit() and endpoint and launcher):
        raise ValueError(
            f"{NNODES_VARIABLE}={count!r}, {RDZV_ENDPOINT_VARIABLE}={endpoint!r}, {NODE_LAUNCHER_VARIABLE}="
            f"{launcher!r}: a job of several nodes needs their number, the HOST:PORT where they meet and the command "
            "that starts a process on each; set all three, or none for one node"
        )
    return NodeSettings(int(count), endpoint, tuple(shlex.split(launcher)))


def _watch(
    process: subprocess.Popen[bytes],
    output: "_Output",
    timeout: float | None,
    stop: threading.Event | None,
    stops: StopWatch,
) -> JobFailure | None:
    """Hands output on until the job has ended, or answers why it has to."""
    started = time.monotonic()
    while process.poll() is None:
        output.hand_on(wait=_POLL_SECONDS)
        if timeout is not None and time.monotonic() - started > timeout:
            tail = "\n".join(output.tail)
            return JobFailure(Cause.OUT_OF_TIME, f"still running after its {timeout:g} s (job_timeout)", tail)
        if stop is not None and stop.is_set():
            return JobFailure(Cause.PREEMPTED, "stopped on request")
        if stops.is_lost(process.pid):
            process.kill()  # it would not hear of anything else
            return JobFailure(Cause.INFRASTRUCTURE, f"the job has been stopped for {stops.seconds:g} s (SIGSTOP?)")
    return None


def _end(process: subprocess.Popen[bytes], job_id: str, grace: float) -> None:
    """Asks a job that still runs to save and leave; whatever is left after the grace is killed.

    Raises :class:`JobFailed` where the kernel cannot end it.
    """
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        try:
            kill_job(job_id)
        except TimeoutError as error:
            raise JobFailed(JobFailure(Cause.INFRASTRUCTURE, str(error))) from error
        process.wait()


@dataclass
class _Output:
    """What a job prints: read by two threads, handed on in the launching one."""

    log: Callable[[str], None]
    on_event: Callable[[dict[str, Any]], None]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    _lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _readers: list[threading.Thread] = field(default_factory=list)
    _pending: list[str] = field(default_factory=list)
    _logged: float = 0.0

    def read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout and process.stderr
        for stream in (process.stdout, process.stderr):
            self._readers.append(threading.Thread(target=self._pump, args=(stream,), daemon=True))
            self._readers[-1].start()

    def _pump(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._lines.put(shown(line.decode(errors="replace").rstrip()))

    def hand_on(self, wait: float) -> None:
        """Hands on what has come, waiting up to ``wait`` seconds for a first line."""
        try:
            self._sort(self._lines.get(timeout=wait))
            while True:
                self._sort(self._lines.get_nowait())
        except queue.Empty:
            if self._pending and time.monotonic() - self._logged >= _SECONDS_PER_RECORD:
                self._flush()

    def finish(self) -> None:
        for reader in self._readers:
            reader.join(_DRAIN_SECONDS)
        self.hand_on(wait=0.0)
        self._flush()

    def _sort(self, line: str) -> None:
        if event := parse_event(line):
            self.on_event(event)
            return
        self.tail.append(line)
        self._pending.append(line)
        if len(self._pending) >= _LINES_PER_RECORD:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.log("\n".join(self._pending))
        self._pending = []
        self._logged = time.monotonic()


def parse_event(line: str) -> dict[str, Any] | None:
    """The event that a line of a rank's output carries, if it does.

    torchrun puts ``[default0]:`` before each piece that it reads; a piece may be the bare end of a line.
    """
    text = line
    while prefix := _PREFIX.match(text):
        text = text[prefix.end() :]
    if not text.startswith("{"):
        return None
    try:
        event, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    if _PREFIX.sub("", text[end:]).strip() or not isinstance(event, dict) or "event" not in event:
        return None
    return event
