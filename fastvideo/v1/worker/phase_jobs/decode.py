"""Latents to a video file."""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from fastvideo.v1.dataset.layout import latents_path, video_path
from fastvideo.v1.dataset.objects.video import VideoWriter
from fastvideo.v1.dataset.objects.video_encoding import VideoEncoding
from fastvideo.v1.dataset.progress.ledger import LedgerRow
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.sample import Sample
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import State, import_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.gpu_worker import GPUWorker
from fastvideo.v1.worker.phase_jobs.base import JobSettings, Product, SampleJob


class DecodeJob(SampleJob):
    """One video at a time, its frames streamed from the VAE to the encoder, which is a chunk or two behind."""

    phase = Phase.DECODE

    def __init__(self, run: Run, worker: GPUWorker, settings: JobSettings, is_stopping: Callable[[], bool]) -> None:
        super().__init__(run, worker, settings, is_stopping)
        self._folder = Path(tempfile.mkdtemp(prefix="fastvideo-decode-"))
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._encodings: dict[str, VideoEncoding] = {}  # by id, until they are committed
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # at the process's end at the latest

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
        path = self._local_path(item)
        writer = VideoWriter(path, sampling.width, sampling.height, sampling.fps, self.run.video)
        with VideoEncoding(self._encoder, writer) as encoding:
            self.worker.execute_forward(batch, ForwardContext(on_frames=lambda frames: encoding.take(frames.numpy())))
        self._encodings[item.id] = encoding
        yield Product(item.id, self.path(item), path, started, time.time() - started)

    def commit(self, product: Product) -> LedgerRow | None:
        """Waits for the file; a sample's seconds are those of the slower of the VAE and the encoder."""
        encoding = self._encodings[product.id]
        metrics = asdict(encoding.result())
        return super().commit(replace(product, seconds=max(product.seconds, encoding.seconds), metrics=metrics))

    def clean_up(self, item: Sample) -> None:
        if (encoding := self._encodings.pop(item.id, None)) is not None:
            encoding.wait()
        self._local_path(item).unlink(missing_ok=True)

    def _local_path(self, item: Sample) -> Path:
        return self._folder / f"{item.id}.mp4"
