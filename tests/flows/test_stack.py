"""The local stack's own rules; tests/end_to_end/test_night.py runs all of it."""

import fcntl
import socket
import stat
from pathlib import Path

import pytest

from flows.stack import Stack, run, write_environment


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return Stack(home=tmp_path, port=taken.getsockname()[1], s3_port=8333, workers=1)


def test_keys_are_made_once_and_for_the_owner_alone(stack: Stack) -> None:
    first = write_environment(stack)
    assert len(first["AWS_SECRET_ACCESS_KEY"]) == 40 and first["AWS_SECRET_ACCESS_KEY"] != first["AWS_ACCESS_KEY_ID"]
    stack.environment_file.chmod(0o644)
    assert write_environment(stack) == first
    assert stat.S_IMODE(stack.environment_file.stat().st_mode) == 0o600
    assert stack.environment_file.read_text().splitlines() == [f"{name}={value}" for name, value in first.items()]


def test_a_second_stack_on_the_same_data_is_refused(stack: Stack) -> None:
    with (stack.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"runs in .* already"):
            run(stack)


def test_a_taken_port_is_named(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.port))
        taken.listen()
        with pytest.raises(ValueError, match=f"port {stack.port}: Address already in use; choose others"):
            run(stack)
