"""torchrun, bound to the life of the process that launched it: ``-m fastvideo.v1.worker.agent PARENT ARGS…``."""

import io
import os
import sys

from fastvideo.v1.worker.process import AGENT_VARIABLE, die_with_parent


def main(arguments: list[str]) -> None:
    die_with_parent(int(arguments[0]))
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # what ranks print goes through here; a pipe would hold it back

    from torch.distributed.run import main as torchrun

    torchrun(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
