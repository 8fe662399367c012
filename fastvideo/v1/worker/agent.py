"""torchrun, bound to the life of the process that launched it: ``-m fastvideo.v1.worker.agent PARENT ARGS…``.

``PARENT`` is that process's id, 0 for whichever started this one: on another node that is the cluster's own.
"""

import io
import os
import sys

from fastvideo.v1.worker.failures import EXIT_PREEMPTED
from fastvideo.v1.worker.process import AGENT_VARIABLE, die_with_parent


def main(arguments: list[str]) -> None:
    die_with_parent(int(arguments[0]) or os.getppid())
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # what ranks print goes through here; a pipe would hold it back

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments[1:])
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode == EXIT_PREEMPTED:
            sys.exit(EXIT_PREEMPTED)
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
