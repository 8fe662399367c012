"""Texts to embeddings."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fastvideo.v1.dataset.layout import input_path
from fastvideo.v1.dataset.state_file import pack_state
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.phase_state import export_sample
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.worker.phase_jobs.base import PhaseJob, Product


@dataclass(frozen=True)
class Text:
    """One distinct text of an encode shard."""

    id: str
    text: str


class EncodeJob(PhaseJob):
    """Texts to embeddings; those of like length together, since the encoder's calls are by length."""

    phase = Phase.ENCODE

    def groups(self, rows: pa.Table) -> list[list[Text]]:
        texts = sorted((Text(**row) for row in rows.to_pylist()), key=lambda text: len(text.text))
        size = self.settings.text_batch_size
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def path(self, item: Text) -> str:
        return input_path(self.run.keys[Phase.ENCODE], item.id)

    def make(self, items: Sequence[Text], inputs: Sequence[Any]) -> Iterator[Product]:
        started = time.time()
        sampling = self.run.sampling.with_overrides(guidance_scale=1.0)  # negative prompts are texts of their own here
        batch = self.worker.execute_forward(ForwardBatch(prompt=[item.text for item in items], sampling=sampling))
        fields = self.worker.pipeline.hands_on[Phase.ENCODE]
        seconds = (time.time() - started) / len(items)
        for index, item in enumerate(items):
            yield Product(item.id, self.path(item), pack_state(*export_sample(batch, fields, index)), started, seconds)
