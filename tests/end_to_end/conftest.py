"""A Prefect server for all commands, prompts to run them on, and one undisturbed run to hold others against."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.all_phases import ForkServer
from tests.end_to_end.commands import FastVideo, run_arguments
from tests.s3_servers import answers, free_port, wait_for

REPOSITORY = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            # One Prefect server and one undisturbed run for all, but for the night, which has a stack of its own.
            item.add_marker(pytest.mark.xdist_group("night" if item.path.name == "test_night.py" else "end_to_end"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The user's, but for what would reach outside the test."""
    own = {
        "PYTHONPATH": str(REPOSITORY),
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    return {**kept, **own}


@pytest.fixture(scope="session")
def alone(environment: dict[str, str]) -> FastVideo:
    """Commands that start a Prefect server of their own."""
    return FastVideo(environment)


@pytest.fixture(scope="session")
def fastvideo(environment: dict[str, str]) -> Iterator[FastVideo]:
    """Commands that share one Prefect server, which saves each several seconds."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: answers(port), server, 180)
    yield FastVideo({**environment, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"})
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def warm() -> ForkServer:
    return ForkServer()


@pytest.fixture(scope="session")
def undisturbed(fastvideo: FastVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to; not to be written to."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    fastvideo(*run_arguments(output))
    return output
