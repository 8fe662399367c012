"""FastVideo: exact, fast video-diffusion inference and the factory that makes data sets with it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvideo.v1.entrypoints.video_generator import VideoGenerator
    from fastvideo.v1.fastvideo_args import FastVideoArgs
    from fastvideo.v1.sampling_params import SamplingParams

_EXPORTS = {
    "FastVideoArgs": "fastvideo.v1.fastvideo_args",
    "SamplingParams": "fastvideo.v1.sampling_params",
    "VideoGenerator": "fastvideo.v1.entrypoints.video_generator",
}
__all__ = ["FastVideoArgs", "SamplingParams", "VideoGenerator"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastvideo' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
