"""A run whose processes are killed, each in a phase of its own: nothing made is lost or made again."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from fastvideo.v1.pipelines.phase import ALL_PHASES
from tests.end_to_end.commands import NUM_PROMPTS, Command, FastVideo, run_arguments
from tests.end_to_end.outputs import count, digests, made_more_than_once, objects, wait_until

PHASES = [str(phase) for phase in ALL_PHASES]
EXIT_CODES = {"flow": -signal.SIGKILL, "Ctrl-C": 130}  # what else is killed, the run goes on without

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns() % 2**32
    print(f"the moments follow from seed {seed}")
    return random.Random(seed)


def disturb(command: Command, way: str, phase: str, output: Path, after: int) -> dict[str, tuple[float, str]]:
    """Kills or interrupts once ``after`` of the phase's objects are there; returns the objects that were.

    The last are still to come: a job that has ended is not killed.
    """
    wait_until(lambda: command.find("job", phase), poll=0.05)
    target = command.find("flow" if way in EXIT_CODES else way, phase)
    assert target is not None
    wait_until(lambda: count(output, phase) >= after or not target.is_running())
    target.send_signal(signal.SIGINT if way == "Ctrl-C" else signal.SIGKILL)
    wait_until(lambda: not target.is_running() or target.status() == psutil.STATUS_ZOMBIE)
    print(f"{way} in {phase} after {count(output, phase)} objects")
    return objects(output)


def test_a_run_goes_on_whatever_is_killed_in_it(
    alone: FastVideo, fastvideo: FastVideo, undisturbed: Path, tmp_path: Path, chance: random.Random
) -> None:
    ways = chance.sample([*EXIT_CODES, "job"], 3)
    command, said, kept = alone.start(*run_arguments(tmp_path)), "", []
    for phase, way in zip(PHASES, ways, strict=True):
        kept.append(disturb(command, way, phase, tmp_path, after=chance.randrange(NUM_PROMPTS - 3)))
        if way in EXIT_CODES:
            ended = command.finish()
            assert ended.returncode == EXIT_CODES[way], ended.stderr
            if way == "Ctrl-C":
                assert ended.stderr.endswith("fastvideo: interrupted; the same command goes on from here\n")
            said += ended.stderr
            command = fastvideo.start(*run_arguments(tmp_path))
    ended = command.finish()
    assert ended.returncode == 0, ended.stderr
    assert (said + ended.stderr).count("again in 10 s") == 1, "of the job that was killed"
    check_whole(tmp_path, undisturbed, kept)


def check_whole(output: Path, undisturbed: Path, kept: list[dict[str, tuple[float, str]]]) -> None:
    """Everything is there, as an undisturbed run makes it, and no object of ``kept`` was touched again."""
    now, expected = objects(output), objects(undisturbed)
    assert now.keys() == expected.keys()
    for before in kept:
        assert before.items() <= now.items()
    assert made_more_than_once(output) == []
    for phase in ("encode", "denoise"):
        assert digests(now, phase) == digests(expected, phase)
