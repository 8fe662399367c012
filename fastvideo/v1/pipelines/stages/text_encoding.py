"""Prompts to text embeddings."""

import html
import re
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage, check_finite
from fastvideo.v1.pipelines.stages.text_batches import Tokens, tokenize


class PromptStage(PipelineStage):
    """Base of the stages that encode a prompt, and the negative prompt if the request is guided by one.

    ``writes`` is the field of the prompt's embeddings; the negative's is named after it.
    """

    phase = Phase.ENCODE
    reads = ("prompt",)
    writes: ClassVar[str]

    def __init__(self, text_encoder: Any, tokenizer: Any, max_length: int) -> None:
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def device(self) -> torch.device:
        return next(self.text_encoder.parameters()).device

    def verify_input(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        if not batch.prompt:
            raise ValueError("prompt is empty; give at least one")

    def verify_output(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        check_finite(batch, self.writes, f"negative_{self.writes}", mend="try text_encoder_precision='float32'")

    def negative_texts(self, batch: ForwardBatch) -> list[str]:
        """A negative prompt for each sample."""
        return batch.negative_prompt or [batch.sampling.negative_prompt] * len(batch.prompt)


class TextEncodingStage(PromptStage):
    """A T5-style encoder's last hidden state, zero where the text is padding.

    Texts are padded to ``max_length`` tokens, or to the tokenizer's own ``model_max_length`` if that is less; that is
    the length the transformer was trained with. The encoder itself sees them cut to about their own length: a masked
    token changes nothing.
    """

    version = 2
    writes = "prompt_embeds"

    def __init__(self, text_encoder: Any, tokenizer: Any, max_length: int = 512) -> None:
        super().__init__(text_encoder, tokenizer, max_length)

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        batch.prompt_embeds, batch.prompt_mask = self.encode(batch.prompt)
        if batch.do_classifier_free_guidance:
            batch.negative_prompt_embeds, batch.negative_prompt_mask = self.encode(self.negative_texts(batch))
        return batch

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``[b, l, e]`` and their mask ``[b, l]`` for ``l`` the padded length."""
        length = min(self.max_length, self.tokenizer.model_max_length)
        return self.embed(tokenize(self.tokenizer, [clean_text(text) for text in texts], length))

    def embed(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`encode`, of tokens."""
        padded = tokens.input_ids.shape[1]

        def encoder(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return F.pad(self.hidden_states(ids, mask) * mask.unsqueeze(-1), (0, 0, 0, padded - ids.shape[1]))

        return tokens.encode(encoder, self.device), tokens.attention_mask.bool().to(self.device)

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the transformer reads of the encoder, ``[r, s, e]``, for one call."""
        return self.text_encoder(ids, mask)


class CLIPTextEncodingStage(PromptStage):
    """A CLIP text encoder's pooled output, of at most ``max_length`` tokens."""

    writes = "pooled_prompt_embeds"

    def __init__(self, text_encoder: Any, tokenizer: Any, max_length: int = 77) -> None:
        super().__init__(text_encoder, tokenizer, max_length)

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        batch.pooled_prompt_embeds = self.encode(batch.prompt)
        if batch.do_classifier_free_guidance:
            batch.negative_pooled_prompt_embeds = self.encode(self.negative_texts(batch))
        return batch

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Pooled embeddings ``[b, e]``."""
        tokens = tokenize(self.tokenizer, texts, min(self.max_length, self.tokenizer.model_max_length))
        return tokens.encode(lambda ids, mask: self.text_encoder(ids, mask).pooler_output, self.device)


def clean_text(text: str) -> str:
    """Mended encoding, no HTML entities, single spaces: what Wan's texts went through in training."""
    import ftfy  # which takes 0.3 s, and most jobs encode nothing

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()
