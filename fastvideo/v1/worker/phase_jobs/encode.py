"""Texts and images to embeddings."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from fastvideo.v1.dataset.layout import image_path, input_path
from fastvideo.v1.dataset.objects.state_file import pack_state
from fastvideo.v1.dataset.runs.row_images import verified_image
from fastvideo.v1.dataset.sources.image_file import decode_image
from fastvideo.v1.forward_context import ForwardContext
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT, TEXT_INPUT
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.phase_jobs.base import PhaseJob, Product


@dataclass(frozen=True)
class Text:
    """One distinct text of an encode shard."""

    id: str
    text: str


@dataclass(frozen=True)
class CanvasImage:
    """One distinct image of an encode shard, told by its SHA-256, and the canvas that it is fitted to."""

    id: str
    image: str
    height: int
    width: int
    num_frames: int


class EncodeJob(PhaseJob):
    """Texts and images to embeddings.

    Texts of like length go together, since the encoder's calls are by length. An image goes alone: one is a whole
    video to the VAE. Each kind runs the stages that read nothing else.
    """

    phase = Phase.ENCODE

    def groups(self, rows: pa.Table) -> list[list[Any]]:
        is_text = rows["text"].is_valid()
        texts = [Text(**row) for row in rows.filter(is_text).select(["id", "text"]).to_pylist()]
        texts.sort(key=lambda text: len(text.text))
        size = self.settings.text_batch_size
        images = rows.filter(pc.invert(is_text)).select(["id", *IMAGE_INPUT])
        return [
            *(texts[start : start + size] for start in range(0, len(texts), size)),
            *([CanvasImage(**row)] for row in images.to_pylist()),
        ]

    def path(self, item: Text | CanvasImage) -> str:
        return input_path(self.run.keys[Phase.ENCODE], item.id)

    def fetch(self, item: Text | CanvasImage) -> bytes | None:
        """The image's file, not yet decoded: a failure to decode is the item's own."""
        if isinstance(item, Text):
            return None
        return self._read_verified(image_path(item.image), verified_image)

    def make(self, items: Sequence[Any], inputs: Sequence[Any]) -> Iterator[Product]:
        started = time.time()
        batch = self._encode_texts(items) if isinstance(items[0], Text) else self._encode_image(*items, *inputs)
        fields = self.worker.pipeline.hands_on[Phase.ENCODE]
        seconds = (time.time() - started) / len(items)
        for index, item in enumerate(items):
            yield Product(item.id, self.path(item), pack_state(*export_sample(batch, fields, index)), started, seconds)

    def _encode_texts(self, items: Sequence[Text]) -> ForwardBatch:
        sampling = self.run.sampling.with_overrides(guidance_scale=1.0)  # negative prompts are texts of their own here
        batch = ForwardBatch(prompt=[item.text for item in items], sampling=sampling)
        return self.worker.execute_forward(batch, ForwardContext(inputs=TEXT_INPUT))

    def _encode_image(self, item: CanvasImage, data: bytes) -> ForwardBatch:
        canvas = {"height": item.height, "width": item.width, "num_frames": item.num_frames}
        image = torch.from_numpy(decode_image(data))
        batch = ForwardBatch(image=[image], sampling=self.run.sampling.with_overrides(**canvas))
        return self.worker.execute_forward(batch, ForwardContext(inputs=IMAGE_INPUT))
