"""The only rank of a job, bound to the life of the process that launched it before it imports anything that takes long:
``-m fastvideo.v1.worker.lone_rank MODULE ARGS…``.
"""

import runpy
import sys

from fastvideo.v1.worker.process import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
