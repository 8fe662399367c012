"""A job for tests, run under torchrun: each argument is a thing to do, in order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fastvideo.v1.worker.failures import Preempted
from fastvideo.v1.worker.process import AGENT_VARIABLE, die_with_parent


def main() -> None:
    die_with_parent()
    if not any(action.startswith("raise=") for action in sys.argv):
        act()
        return
    from torch.distributed.elastic.multiprocessing.errors import record  # torch, which takes seconds to import

    record(act)()


def act() -> None:
    for action in sys.argv[1:]:
        name, _, value = action.partition("=")
        if name == "event":
            print(f'{{"event": "{value}", "rank": {os.environ["RANK"]}}}', flush=True)
        elif name == "say":
            print(value, flush=True)
        elif name == "holds":
            open_files = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
            print(f'{{"event": "{value in open_files}", "rank": {os.environ["RANK"]}}}', flush=True)
        elif name == "touch":
            Path(value).touch()
        elif name == "live":
            while True:
                Path(value).touch()
                time.sleep(0.1)
        elif name == "sleep":
            time.sleep(float(value))
        elif name == "ignore_sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif name == "leave":
            subprocess.Popen(["sleep", value])
        elif name == "meet":
            meet(Path(value))
        elif name in ("kill", "stop") and os.environ["RANK"] == value:
            os.kill(os.getpid(), signal.SIGKILL if name == "kill" else signal.SIGSTOP)
        elif name == "ask" and os.environ["RANK"] == value:
            os.kill(int(os.environ[AGENT_VARIABLE]), signal.SIGTERM)
        elif name == "raise":
            raise _error(value)


def meet(folder: Path) -> None:
    """Waits for all ranks."""
    Path(folder, os.environ["RANK"]).touch()
    while len(list(folder.iterdir())) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)


def _error(name: str) -> Exception:
    from torch import OutOfMemoryError

    kinds = {kind.__name__: kind for kind in (ValueError, RuntimeError, Preempted, OutOfMemoryError)}
    return kinds[name](f"a {name}\nof two lines")


if __name__ == "__main__":
    main()
