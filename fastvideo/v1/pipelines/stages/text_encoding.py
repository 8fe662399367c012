"""Prompts to text embeddings."""

import html
import re
from typing import Any

import ftfy
import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage


class TextEncodingStage(PipelineStage):
    """A T5-style encoder's last hidden state, zero where the text is padding.

    Texts are padded to ``max_length`` tokens, or to the tokenizer's own ``model_max_length`` if that is less; that is
    the length the transformer was trained with. The encoder itself sees them cut to the longest of the batch: a
    masked token changes nothing.
    """

    phase = Phase.ENCODE
    reads = ("prompt",)

    def __init__(self, text_encoder: Any, tokenizer: Any, max_length: int = 512) -> None:
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.max_length = max_length

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        if not batch.prompt:
            raise ValueError("prompt is empty; give at least one")

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        batch.prompt_embeds, batch.prompt_mask = self.encode(batch.prompt)
        if batch.do_classifier_free_guidance:
            negative = batch.negative_prompt or [batch.sampling.negative_prompt] * len(batch.prompt)
            batch.negative_prompt_embeds, batch.negative_prompt_mask = self.encode(negative)
        return batch

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``[b, l, e]`` and their mask ``[b, l]`` for ``l`` the padded length."""
        length = min(self.max_length, self.tokenizer.model_max_length)
        tokens = self.tokenizer(
            [clean_text(text) for text in texts], padding=True, max_length=length, truncation=True, return_tensors="pt"
        )
        device = next(self.text_encoder.parameters()).device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        hidden = self.text_encoder(ids, mask) * mask.unsqueeze(-1)
        missing = length - ids.shape[1]
        return torch.nn.functional.pad(hidden, (0, 0, 0, missing)), torch.nn.functional.pad(mask, (0, missing)).bool()


class CLIPTextEncodingStage(PipelineStage):
    """A CLIP text encoder's pooled output."""

    phase = Phase.ENCODE
    reads = ("prompt",)

    def __init__(self, text_encoder: Any, tokenizer: Any) -> None:
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        tokens = self.tokenizer(
            batch.prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.text_encoder.parameters()).device
        output = self.text_encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device))
        batch.pooled_prompt_embeds = output.pooler_output
        return batch


def clean_text(text: str) -> str:
    """Mended encoding, no HTML entities, single spaces: what Wan's texts went through in training."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()
