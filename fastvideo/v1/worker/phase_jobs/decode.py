"""Latents to a video file."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fastvideo.v1.dataset.layout import latents_path, video_path
from fastvideo.v1.dataset.quality import QualityMeter
from fastvideo.v1.dataset.sample import Sample
from fastvideo.v1.dataset.video import VideoWriter
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import State, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.phase_jobs.base import Product, SampleJob


class DecodeJob(SampleJob):
    """One video at a time, its frames streamed from the VAE to the encoder."""

    phase = Phase.DECODE

    def path(self, item: Sample) -> str:
        return video_path(self.run.keys[Phase.DECODE], item.id)

    def fetch(self, item: Sample) -> State:
        return self._read_state(latents_path(self.run.keys[Phase.DENOISE], item.id))

    def make(self, items: Sequence[Sample], inputs: Sequence[State]) -> Iterator[Product]:
        (item,), (state,) = items, inputs
        started = time.time()
        sampling = item.sampling(self.run.sampling)
        batch = ForwardBatch(prompt=[item.prompt], seeds=[item.seed], sampling=sampling)
        import_sample(batch, *state)
        if not self.leads:  # its part of the work is the VAE's; the file is the first rank's
            self.worker.execute_forward(batch, ForwardContext(on_frames=lambda frames: None))
            yield Product(item.id, self.path(item), b"", started, time.time() - started)
            return
        meter = QualityMeter()
        with tempfile.NamedTemporaryFile(suffix=".mp4", delete=False) as file:
            path = Path(file.name)
        try:
            with VideoWriter(path, sampling.width, sampling.height, sampling.fps, self.run.video) as writer:

                def take(frames: torch.Tensor) -> None:
                    writer.write(frames.numpy())
                    meter.update(frames.numpy())

                self.worker.execute_forward(batch, ForwardContext(on_frames=take))
        except BaseException:
            path.unlink()
            raise
        metrics = asdict(meter.result())
        yield Product(item.id, self.path(item), path, started, time.time() - started, metrics)
