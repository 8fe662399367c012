"""Simple numbers about a video's frames, good for finding what went wrong: black, flat, frozen."""

from dataclasses import dataclass

import numpy as np

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32) / 255  # ITU-R BT.709, of values in [0, 255]
_BLACK = 0.02


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Luminance is in [0, 1]; ``contrast`` is its standard deviation within a frame, ``motion`` its mean absolute
    change from frame to frame, both averaged over the video. A frame darker than 0.02 on average is black."""

    mean_luminance: float
    contrast: float
    motion: float
    black_frames: int


class QualityMeter:
    """Measures frames as they pass, chunk by chunk."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._means: list[float] = []
        self._deviations: list[float] = []
        self._changes: list[float] = []

    def update(self, frames: np.ndarray) -> None:
        """Takes uint8 frames ``[t, h, w, c]``."""
        for frame in frames:
            luminance = frame.astype(np.float32) @ _LUMINANCE
            self._means.append(float(luminance.mean()))
            self._deviations.append(float(luminance.std()))
            if self._last is not None:
                self._changes.append(float(np.abs(luminance - self._last).mean()))
            self._last = luminance

    def result(self) -> Quality:
        """The numbers of all frames taken so far."""
        return Quality(
            mean_luminance=_mean(self._means),
            contrast=_mean(self._deviations),
            motion=_mean(self._changes),
            black_frames=sum(mean < _BLACK for mean in self._means),
        )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
