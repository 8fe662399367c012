"""The stage job with something that goes wrong: run as it is, it takes ``FAULTS`` (JSON) and ``FAULT_SECONDS``."""

import json
import os
import runpy
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from fastvideo.v1.pipelines.stages import DenoisingStage
from fastvideo.v1.worker import stage_job
from fastvideo.v1.worker.heartbeat import Heartbeat

ERRORS = {kind.__name__: kind for kind in (ValueError, FloatingPointError, RuntimeError)}


def fault(rank: int, prompt: str, kind: str, step: int | None = None, times: int = 1) -> dict[str, Any]:
    """What befalls ``rank`` for so many ``times`` before ``step`` of a prompt, or at the end of the stage: an error or
    a signal, by name, or "hang".
    """
    return {"rank": rank, "prompt": prompt, "kind": kind, "step": step, "times": times}


@contextmanager
def faulty(rank: int, faults: Sequence[dict[str, Any]], seconds: float) -> Iterator[None]:
    """Denoising with ``faults``; each step waits for so many ``seconds``, and is told of by an event."""
    left = [dict(fault) for fault in faults if fault["rank"] == rank]
    seen, verify_output = DenoisingStage._seen, DenoisingStage.verify_output

    def before_step(self, batch, timestep):
        stage_job.emit("step", rank=rank, step=batch.step_index)
        time.sleep(seconds)
        _befall(left, batch.prompt[0], batch.step_index)
        return seen(self, batch, timestep)

    def at_end(self, batch, fastvideo_args):
        _befall(left, batch.prompt[0], None)
        verify_output(self, batch, fastvideo_args)

    with patch.multiple(DenoisingStage, _seen=before_step, verify_output=at_end):
        yield


def _befall(faults: Sequence[dict[str, Any]], prompt: str, step: int | None) -> None:
    for fault in faults:
        if (prompt, step) == (fault["prompt"], fault["step"]) and fault["times"]:
            fault["times"] -= 1
            if fault["kind"] in ERRORS:
                raise ERRORS[fault["kind"]]("a fault")
            if fault["kind"] == "hang":
                time.sleep(3600)
            os.kill(os.getpid(), signal.Signals[fault["kind"]])


if __name__ == "__main__":
    told = os.environ
    sooner = patch("fastvideo.v1.worker.phase_jobs.base.Heartbeat", lambda least: Heartbeat(least / 25))
    with sooner, faulty(int(told.get("RANK", 0)), json.loads(told["FAULTS"]), float(told.get("FAULT_SECONDS", 0))):
        runpy.run_module(stage_job.__name__, run_name="__main__")
