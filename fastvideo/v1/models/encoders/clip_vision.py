"""CLIP's vision tower, a ViT (arXiv 2010.11929; reference: transformers ``CLIPVisionModel``).

Legend: ``b`` batch, ``c`` channel, ``h w`` patches, ``p q`` pixels of a patch, ``s = 1 + h w`` tokens, ``i`` width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fastvideo.v1.layers.norms import LayerNorm
from fastvideo.v1.models.base import Model, ModelConfig
from fastvideo.v1.models.encoders.clip_block import (
    CLIP_PACKED_MODULES,
    CLIP_RENAMED_KEYS,
    CLIPBlockConfig,
    CLIPEncoder,
)


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(CLIPBlockConfig):
    """``image_encoder/config.json``."""

    image_size: int
    patch_size: int
    num_channels: int = 3


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product: ``[b c (h p) (w q)] -> [b (h w) i]``."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        shape = (config.hidden_size, config.num_channels, config.patch_size, config.patch_size)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size)
        return F.linear(patches, self.weight.flatten(1))


class CLIPVisionEmbeddings(nn.Module):
    """The class token and the patches, each with its position: ``[b c (h p) (w q)] -> [b s i]``."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        num_positions = 1 + (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = nn.Embedding(num_positions, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class CLIPVisionModel(Model):
    """Pixels to hidden states. There is no pooling: video models attend to all tokens."""

    config_class: ClassVar[type[ModelConfig]] = CLIPVisionConfig
    packed_modules: ClassVar[dict[str, tuple[str, ...]]] = CLIP_PACKED_MODULES
    renamed_keys: ClassVar[dict[str, str]] = CLIP_RENAMED_KEYS
    ignored_keys: ClassVar[tuple[str, ...]] = (
        "position_ids",
        "post_layernorm.weight",
        "post_layernorm.bias",
        "visual_projection.weight",
    )
    block_lists: ClassVar[tuple[str, ...]] = ("encoder.layers",)
    config: CLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)  # so spelt in every checkpoint
        self.encoder = CLIPEncoder(config)

    def forward(self, pixel_values: torch.Tensor, skip_layers: int = 0) -> torch.Tensor:
        """Normalised pixels ``[b c image_size image_size]`` to the hidden states ``[b s i]`` before the last
        ``skip_layers`` layers, which do not run: transformers' ``hidden_states[-(skip_layers + 1)]``.

        Raises ``ValueError`` for images of another size.
        """
        size = self.config.image_size
        if pixel_values.shape[-2:] != (size, size):
            height, width = pixel_values.shape[-2:]
            raise ValueError(f"images of {height}x{width} pixels; this model takes {size}x{size}")
        hidden = self.pre_layrnorm(self.embeddings(pixel_values.to(self.dtype)))
        return self.encoder(hidden, skip_layers=skip_layers)
