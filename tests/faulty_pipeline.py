"""A pipeline in which the prompt decides what goes wrong, on rank 1: ``raise decode``, ``kill denoise``."""

import os
import signal

from fastvideo.v1.pipelines.phase import ALL_PHASES
from fastvideo.v1.pipelines.registry import register_pipeline
from fastvideo.v1.pipelines.stages import PipelineStage
from fastvideo.v1.pipelines.wan import WanPipeline


class Fault(RuntimeError):
    """One that only this module has."""


class FaultStage(PipelineStage):
    def __init__(self, phase: str) -> None:
        self.at = phase

    def forward(self, batch, fastvideo_args):
        fault, _, phase = batch.prompt[0].partition(" ")
        if phase == self.at and os.environ.get("RANK") == "1":
            if fault == "raise":
                raise Fault(f"a fault in {phase}")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return batch


class FaultyPipeline(WanPipeline):
    """Wan with a stage before those of each phase that may fail."""

    def add_stage(self, name, stage, phase=None):
        known = {entry.phase for entry in self.all_stages}
        now = phase or stage.phase or (self.all_stages[-1].phase if self.all_stages else ALL_PHASES[0])
        if now not in known:
            super().add_stage(f"fault_in_{now}", FaultStage(str(now.value)), now)
        super().add_stage(name, stage, phase)


def register() -> None:
    register_pipeline("FaultyPipeline", "tests.faulty_pipeline:FaultyPipeline")
