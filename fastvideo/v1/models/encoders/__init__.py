"""Text and image encoders."""

from fastvideo.v1.models.encoders.umt5 import UMT5Config, UMT5EncoderModel

__all__ = ["UMT5Config", "UMT5EncoderModel"]
