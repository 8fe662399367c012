"""torchrun, bound to the life of its launcher: ``-m fastvideo.v1.worker.agent PARENT HANG GRACE HELD FOLDER ARGS…``.

``PARENT`` is the launcher's process id, 0 for whichever started this one: on another node that is the cluster's own. A
rank that has been stopped (SIGSTOP) for ``HANG`` seconds is killed, which ends the job. Ranks that are asked to leave,
with this process (SIGTERM) or since another rank has ended, have ``GRACE`` seconds. They inherit the open files
``HELD`` (numbers with commas between them, - for none). What they print is kept in ``FOLDER``, which the launcher
removes.
"""

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from threading import Thread

import psutil

from fastvideo.v1.worker.failures import EXIT_PREEMPTED
from fastvideo.v1.worker.process import AGENT_VARIABLE, StopWatch, die_with_parent

_POLL_SECONDS = 1.0


def main(arguments: list[str]) -> None:
    parent, hang, grace, held, folder, *rest = arguments
    die_with_parent(int(parent) or os.getppid())
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # what ranks print goes through here; a pipe would hold it back

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    _set_what_torchrun_has_no_option_for(float(grace), [int(file) for file in held.split(",") if file != "-"])
    Thread(target=_end_stopped_ranks, args=(float(hang),), daemon=True).start()
    try:
        with _on_this_host(folder) as log_folder:
            torchrun([f"--log-dir={log_folder}", *rest])
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == EXIT_PREEMPTED:
            sys.exit(EXIT_PREEMPTED)
        raise


def _set_what_torchrun_has_no_option_for(grace: float, held: Sequence[int]) -> None:
    """It keeps to 30 s where a rank has ended, whatever its ``--shutdown_timeout``, and closes all files of ranks."""
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    close = PContext.close
    PContext.close = lambda ranks, death_sig=None, timeout=None: close(ranks, death_sig, grace)  # type: ignore
    subprocess_handler.Popen = partial(Popen, pass_fds=held)  # type: ignore


@contextmanager
def _on_this_host(folder: str) -> Iterator[str]:
    """The launcher's folder, or one of our own where there is none: on another node."""
    if os.path.isdir(folder):
        yield folder
        return
    with TemporaryDirectory(prefix="fastvideo-job-") as own:
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(Path(own, "error.json"))
        yield own


def _end_stopped_ranks(seconds: float) -> None:
    """Those of other samples would never miss a stopped rank, and torchrun would wait for it for ever."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    watch = StopWatch(seconds)
    while True:
        time.sleep(_POLL_SECONDS)
        for rank in psutil.Process().children():
            if watch.is_lost(rank.pid):
                error = TimeoutError(f"process {rank.pid} of the job has been stopped for {seconds:g} s (SIGSTOP?)")
                get_error_handler().record_exception(error)
                rank.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
