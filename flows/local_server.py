"""A Prefect server for one command: started when no other is configured, and never left behind.

Prefect can start a temporary server by itself, but that one outlives a command that is killed.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from fastvideo.v1.shown_text import without_secrets
from fastvideo.v1.worker.process import die_with_parent

_START_SECONDS = 300.0  # it takes 6, far more where all cores are at work; one that ends is noticed at once
_POLL_SECONDS = 0.1
_DELAYS = (1.0, 4.0)  # seconds before a configured server is asked again


def quiet_prefect(debug: bool) -> None:
    """Sets what Prefect says and sends, where the user has not; to be called before Prefect is imported."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if debug else "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def prefect_server() -> Iterator[str]:
    """The URL of the server that the user's environment or profile names, else of one started for the block.

    Raises ``ConnectionError`` when one that is configured does not answer, before the block or in it, ``ValueError``
    when a private one does not start.
    """
    from prefect.settings import get_current_settings

    if configured := get_current_settings().api.url:
        name = without_secrets(str(configured))
        _check_answers(name, f"{configured}/health")
        try:
            yield str(configured)
        except httpx.HTTPError as error:
            if not is_away(error):
                raise
            raise ConnectionError(
                f"the Prefect server at {name} went away ({error}); the same command goes on"
            ) from error
        return
    with _started_server() as url:
        yield url


def is_away(error: httpx.HTTPError) -> bool:
    """Whether it says that nobody answers, or a server that cannot just now: its database may be gone."""
    return not isinstance(error, httpx.HTTPStatusError) or error.response.is_server_error


def _check_answers(shown_url: str, health: str) -> None:
    """Prefect itself would try for minutes, and then say little. Any answer will do: not every server has this page."""
    for delay in (*_DELAYS, None):
        try:
            httpx.get(health, timeout=10.0)
            return
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
        if delay is not None:
            time.sleep(delay)
    raise ConnectionError(
        f"the Prefect server at {shown_url} does not answer ({reason}); start it, mend PREFECT_API_URL or the profile, "
        "or leave it out and a private one serves"
    )


@contextmanager
def _started_server() -> Iterator[str]:
    from prefect.context import refresh_global_settings_context

    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_database()}", "PREFECT_UI_ENABLED": "false"}
    command = [sys.executable, "-m", "flows.local_server", str(os.getpid()), str(port)]
    with tempfile.TemporaryFile() as said:  # a pipe would fill, for nobody reads it
        # A session of its own: Ctrl-C is for the command, which then still tells the server what became of its run.
        server = subprocess.Popen(command, env={**own, **os.environ}, stderr=said, start_new_session=True)
        names = {"PREFECT_API_URL": url, "PREFECT_LOGGING_TO_API_ENABLED": "false"}
        try:
            _wait_until_healthy(server, url, said)
            os.environ.update(names)
            refresh_global_settings_context()
            yield url
        finally:
            for name in names:
                os.environ.pop(name, None)
            server.kill()  # its database is a view of runs that nobody reads back: nothing is lost
            server.wait()


def _wait_until_healthy(server: "subprocess.Popen[bytes]", url: str, said: BinaryIO) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(_POLL_SECONDS)
    server.kill()
    said.seek(0)
    last = (said.read().decode(errors="replace").strip().splitlines() or ["no word"])[-1]
    raise ValueError(f"the local Prefect server did not start ({last}); set PREFECT_API_URL to use another")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _database() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fastvideo")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME to a writable folder"
        ) from None
    return folder / "prefect.db"


def _serve(parent: int, port: int) -> None:
    die_with_parent(parent)
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(), host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
