"""kill -9 of each process of a run, at a random moment of each phase: nothing made is lost or made again."""

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


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns() % 2**32
    print(f"the moments follow from seed {seed}")
    return random.Random(seed)


def kill(command: Command, kind: str, phase: str, output: Path, chance: random.Random) -> dict[str, tuple[float, str]]:
    """Kills once a random number of the phase's objects is there; returns the objects that were."""
    wait_until(lambda: command.find("rank", phase), poll=0.05)
    target = command.find(kind, phase)
    assert target is not None
    after = chance.randrange(NUM_PROMPTS)
    wait_until(lambda: count(output, phase) >= after or not target.is_running())
    time.sleep(0.02 * chance.random())
    target.send_signal(signal.SIGKILL)
    wait_until(lambda: not target.is_running() or target.status() == psutil.STATUS_ZOMBIE)
    print(f"killed the {kind} of {phase} after {count(output, phase)} objects")
    return objects(output)


def check_whole(output: Path, undisturbed: Path, kept: list[dict[str, tuple[float, str]]]) -> None:
    """Everything is there, as an undisturbed run makes it, and no object of ``kept`` was touched again."""
    now, expected = objects(output), objects(undisturbed)
    assert now.keys() == expected.keys()
    for before in kept:
        assert before.items() <= now.items()
    assert made_more_than_once(output) == []
    for phase in ("encode", "denoise"):
        assert digests(now, phase) == digests(expected, phase)


def test_a_killed_job_goes_on_in_the_same_run(
    fastvideo: FastVideo, undisturbed: Path, tmp_path: Path, chance: random.Random
) -> None:
    kinds = chance.choice([("rank", "torchrun", "rank"), ("torchrun", "rank", "torchrun")])
    command = fastvideo.start(*run_arguments(tmp_path))
    kept = [kill(command, kind, phase, tmp_path, chance) for kind, phase in zip(kinds, PHASES, strict=True)]
    ended = command.finish()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("again in 10 s") == len(PHASES)
    check_whole(tmp_path, undisturbed, kept)


def test_a_killed_run_goes_on_by_running_again(
    alone: FastVideo, fastvideo: FastVideo, undisturbed: Path, tmp_path: Path, chance: random.Random
) -> None:
    kept = []
    for phase, commands in zip(PHASES, (alone, fastvideo, fastvideo), strict=True):
        command = commands.start(*run_arguments(tmp_path))
        kept.append(kill(command, "flow", phase, tmp_path, chance))
        assert command.finish().returncode == -signal.SIGKILL
    fastvideo(*run_arguments(tmp_path))
    check_whole(tmp_path, undisturbed, kept)
