"""Video autoencoders."""

from fastvideo.v1.models.vaes.wan import AutoencoderKLWan, WanVAEConfig

__all__ = ["AutoencoderKLWan", "WanVAEConfig"]
