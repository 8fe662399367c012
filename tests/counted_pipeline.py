"""Wan that notes each video it begins to denoise or decode in the file ``FASTVIDEO_TEST_BEGUN``: phase, prompt.

It takes its time, so that a kill finds it at work.
"""

import os
import time

from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.registry import register_pipeline
from fastvideo.v1.pipelines.stages import PipelineStage
from fastvideo.v1.pipelines.wan import WanPipeline

PAUSE_SECONDS = {Phase.DENOISE: 0.8, Phase.DECODE: 0.0}


class NoteStage(PipelineStage):
    def __init__(self, at: Phase) -> None:
        self.at = at

    def forward(self, batch, fastvideo_args):
        line = f"{self.at}\t{batch.prompt[0]}\n".encode()
        file = os.open(os.environ["FASTVIDEO_TEST_BEGUN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)  # one write: lines of several processes do not mix
        os.close(file)
        time.sleep(PAUSE_SECONDS[self.at])
        return batch


class CountedPipeline(WanPipeline):
    """Wan with a note before the stages of denoising and of decoding."""

    def add_stage(self, name, stage, phase=None):
        noted = {entry.name for entry in self.all_stages}
        if stage.phase in (Phase.DENOISE, Phase.DECODE) and f"note_{stage.phase}" not in noted:
            super().add_stage(f"note_{stage.phase}", NoteStage(stage.phase), stage.phase)
        super().add_stage(name, stage, phase)


def register() -> None:
    register_pipeline("CountedPipeline", "tests.counted_pipeline:CountedPipeline")
