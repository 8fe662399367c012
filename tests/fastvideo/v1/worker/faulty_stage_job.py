"""The stage job, one step of which takes ``FAULT_SECONDS``; ``FAULTS`` is a JSON list of what goes wrong on which rank.

Each fault has ``rank``, ``prompt``, ``error``, the ``step`` before which it is raised or None for the end of the
stage, and ``times``, how often. Every step is told of by an event.
"""

import json
import os
import time

from torch.distributed.elastic.multiprocessing.errors import record

from fastvideo.v1.pipelines.stages import DenoisingStage
from fastvideo.v1.worker import stage_job

RANK = int(os.environ["RANK"])
FAULTS = [fault for fault in json.loads(os.environ["FAULTS"]) if fault["rank"] == RANK]
ERRORS = {kind.__name__: kind for kind in (ValueError, FloatingPointError, RuntimeError)}


class FaultyStage:
    """``DenoisingStage``'s methods with the faults before them."""

    seen = DenoisingStage._seen
    verify_output = DenoisingStage.verify_output

    def before_step(self, batch, timestep):
        stage_job.emit("step", rank=RANK, step=batch.step_index)
        time.sleep(float(os.environ["FAULT_SECONDS"]))
        fail(batch, batch.step_index)
        return FaultyStage.seen(self, batch, timestep)

    def at_end(self, batch, fastvideo_args):
        fail(batch, None)
        FaultyStage.verify_output(self, batch, fastvideo_args)


def fail(batch, step):
    for fault in FAULTS:
        if (batch.prompt[0], step) == (fault["prompt"], fault["step"]) and fault["times"]:
            fault["times"] -= 1
            raise ERRORS[fault["error"]]("a fault")


@record
def main() -> None:
    DenoisingStage._seen = FaultyStage.before_step
    DenoisingStage.verify_output = FaultyStage.at_end
    stage_job.main()


if __name__ == "__main__":
    main()
