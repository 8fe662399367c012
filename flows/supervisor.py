"""Programs that are kept running on one machine: started again when they end, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastvideo.v1.worker.process import die_with_parent, kill_marked

_POLL_SECONDS = 0.2
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0
_STEADY_SECONDS = 60.0  # one that lived this long starts again at once, whatever came before


@dataclass(frozen=True, kw_only=True)
class Program:
    """``is_ready`` says whether it serves; ``grace`` counts seconds from SIGTERM to SIGKILL."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool] = lambda: True
    ready_within: float = 120.0
    grace: float = 5.0


@dataclass
class _Running:
    program: Program
    process: "subprocess.Popen[bytes]"
    started: float
    delay: float = _FIRST_DELAY
    start_again: float | None = None


@dataclass
class Supervisor:
    """Each program writes to ``logs/NAME.log``; ``mark`` is a variable and a value that all their processes carry."""

    env: Mapping[str, str]
    mark: tuple[str, str]
    logs: Path
    say: Callable[[str], None]
    _running: list[_Running] = field(default_factory=list)

    def start(self, *programs: Program) -> None:
        """Starts the programs side by side, then waits until all serve.

        Raises ``ValueError`` with a program's last word if it ends or takes too long.
        """
        started = [_Running(program, self._launch(program), time.monotonic()) for program in programs]
        self._running += started
        for one in started:
            deadline = one.started + one.program.ready_within
            while not one.program.is_ready():
                if one.process.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"{one.program.name} did not start: {self._last_word(one.program)}")
                time.sleep(_POLL_SECONDS)

    def watch(self) -> None:
        """Keeps all of them running until interrupted."""
        while True:
            self.look_after()
            time.sleep(_POLL_SECONDS)

    def look_after(self) -> None:
        """Starts again what has ended, after a while that grows as long as it keeps ending."""
        for one in self._running:
            self._start_again(one)

    def end(self) -> None:
        """Ends all programs, the last started first, and every process that they started."""
        for one in reversed(self._running):
            if one.process.poll() is None:
                one.process.terminate()
                try:
                    one.process.wait(one.program.grace)
                except subprocess.TimeoutExpired:
                    one.process.kill()
        kill_marked(*self.mark)
        for one in self._running:
            one.process.wait()

    def _start_again(self, one: _Running) -> None:
        now = time.monotonic()
        if one.process.poll() is None:
            return
        if one.start_again is None:
            one.delay = _FIRST_DELAY if now - one.started > _STEADY_SECONDS else one.delay
            one.start_again = now + one.delay
            self.say(f"{one.program.name} {_ending(one.process.returncode)}; it starts again in {one.delay:g} s")
        elif now >= one.start_again:
            one.process, one.started, one.start_again = self._launch(one.program), now, None
            one.delay = min(2 * one.delay, _LONGEST_DELAY)

    def _launch(self, program: Program) -> "subprocess.Popen[bytes]":
        variable, value = self.mark
        guarded = [sys.executable, "-m", "flows.supervisor", str(os.getpid()), *program.command]
        with self._log(program).open("ab") as log:
            # A session of its own: Ctrl-C is for the supervisor, which ends the programs in their order.
            return subprocess.Popen(
                guarded, env={**self.env, variable: value}, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _log(self, program: Program) -> Path:
        return self.logs / f"{program.name}.log"

    def _last_word(self, program: Program) -> str:
        lines = self._log(program).read_text(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return f"{words[-1] if words else 'no word'} (see {self._log(program)})"


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _become(parent: int, command: list[str]) -> None:
    """Runs ``command`` in this process's place; it dies with ``parent``, however that ends."""
    die_with_parent(parent)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
