"""Text and image encoders."""

from fastvideo.v1.models.encoders.clip_text import CLIPTextConfig, CLIPTextModel
from fastvideo.v1.models.encoders.clip_vision import CLIPVisionConfig, CLIPVisionModel
from fastvideo.v1.models.encoders.llama import LlamaConfig, LlamaModel
from fastvideo.v1.models.encoders.umt5 import UMT5Config, UMT5EncoderModel

__all__ = [
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "LlamaConfig",
    "LlamaModel",
    "UMT5Config",
    "UMT5EncoderModel",
]
