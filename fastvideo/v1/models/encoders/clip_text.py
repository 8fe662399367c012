"""CLIP's text tower (arXiv 2103.00020, section 2.4; reference: transformers ``CLIPTextModel``).

Legend: ``b`` batch, ``s`` tokens, ``i`` width.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from fastvideo.v1.layers.norms import LayerNorm
from fastvideo.v1.layers.vocab_parallel_embedding import VocabParallelEmbedding
from fastvideo.v1.models.base import Model, ModelConfig
from fastvideo.v1.models.encoders.causal_mask import causal_mask
from fastvideo.v1.models.encoders.clip_block import (
    CLIP_PACKED_MODULES,
    CLIP_RENAMED_KEYS,
    CLIPBlockConfig,
    CLIPEncoder,
)

_LEGACY_EOS_TOKEN = 2


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(CLIPBlockConfig):
    """``text_encoder_2/config.json`` of HunyuanVideo, and that of any CLIP text model."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


class CLIPTextOutput(NamedTuple):
    """``last_hidden_state`` ``[b s i]`` after the final norm; ``pooler_output`` ``[b i]``, that of the end of text."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor


class CLIPTextEmbeddings(nn.Module):
    """Token and position embeddings: ``[b s] -> [b s i]``."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class CLIPTextModel(Model):
    """Token ids to hidden states and a pooled embedding."""

    config_class: ClassVar[type[ModelConfig]] = CLIPTextConfig
    packed_modules: ClassVar[dict[str, tuple[str, ...]]] = CLIP_PACKED_MODULES
    renamed_keys: ClassVar[dict[str, str]] = CLIP_RENAMED_KEYS
    ignored_keys: ClassVar[tuple[str, ...]] = ("position_ids", "text_projection.weight")
    block_lists: ClassVar[tuple[str, ...]] = ("encoder.layers",)
    config: CLIPTextConfig

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> CLIPTextOutput:
        """Token ids ``[b s]`` and a mask ``[b s]`` (0: padding) to hidden states and the pooled embedding.

        Raises ``ValueError`` for more tokens than there are positions.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens, but this model has {self.config.max_position_embeddings} positions; "
                "truncate the text"
            )
        hidden = self.encoder(self.embeddings(input_ids), causal_mask(input_ids, attention_mask))
        hidden = self.final_layer_norm(hidden)
        rows = torch.arange(len(hidden), device=hidden.device)
        return CLIPTextOutput(hidden, hidden[rows, self._end_of_text(input_ids)])

    def _end_of_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position of each text's end; padding may be the same token, so it is the first one that counts."""
        if self.config.eos_token_id == _LEGACY_EOS_TOKEN:
            # Configs of 2023 and before name a wrong token, and the end has the highest id of CLIP's vocabulary.
            return input_ids.argmax(dim=1)
        return (input_ids == self.config.eos_token_id).int().argmax(dim=1)
