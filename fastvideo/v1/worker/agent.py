"""torchrun, bound to the life of the process that launched it: ``-m fastvideo.v1.worker.agent PARENT SECONDS ARGS…``.

``PARENT`` is that process's id, 0 for whichever started this one: on another node that is the cluster's own. A rank
that has been stopped (SIGSTOP) for ``SECONDS`` is killed, which ends the job.
"""

import io
import os
import sys
import time
from threading import Thread

import psutil

from fastvideo.v1.worker.failures import EXIT_PREEMPTED
from fastvideo.v1.worker.process import AGENT_VARIABLE, StopWatch, die_with_parent

_POLL_SECONDS = 1.0


def main(arguments: list[str]) -> None:
    die_with_parent(int(arguments[0]) or os.getppid())
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # what ranks print goes through here; a pipe would hold it back

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    Thread(target=_end_stopped_ranks, args=(float(arguments[1]),), daemon=True).start()
    try:
        torchrun(arguments[2:])
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == EXIT_PREEMPTED:
            sys.exit(EXIT_PREEMPTED)
        raise


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
