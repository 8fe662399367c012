"""How far an object is from another of the same name."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest

import numpy as np

from fastvideo.v1.dataset.objects.state_file import DamagedObject, unpack_state
from fastvideo.v1.dataset.objects.video import iter_frames
from fastvideo.v1.pipelines.phase import Phase


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One object against its stored twin; ``why_not`` says why it could not be compared.

    ``error`` is the RMS of the difference over that of the stored tensors. ``psnr`` of a video is in decibels, over all
    pixels of all frames, None if they are equal.
    """

    phase: Phase
    path: str
    is_equal: bool = False
    error: float | None = None
    psnr: float | None = None
    why_not: str | None = None


def compare_objects(phase: Phase, path: str, stored: bytes, made: bytes) -> Comparison:
    """What lies at ``path`` against what was made for its place; raises :class:`DamagedObject` for the former."""
    if stored == made:
        return Comparison(phase=phase, path=path, is_equal=True, error=None if phase is Phase.DECODE else 0.0)
    if phase is Phase.DECODE:
        return Comparison(phase=phase, path=path, psnr=_psnr(stored, made, path))
    return Comparison(phase=phase, path=path, error=_relative_error(stored, made, path))


def _relative_error(stored: bytes, made: bytes, path: str) -> float | None:
    """RMS of the difference over RMS of the stored tensors; None where names or shapes differ."""
    (theirs, _), (ours, _) = unpack_state(stored, path), unpack_state(made, path)
    if {name: value.shape for name, value in theirs.items()} != {name: value.shape for name, value in ours.items()}:
        return None
    difference = sum(float((ours[name].double() - value.double()).square().sum()) for name, value in theirs.items())
    size = sum(float(value.double().square().sum()) for value in theirs.values())
    return math.sqrt(difference / size) if size else None


def _psnr(stored: bytes, made: bytes, path: str) -> float | None:
    try:
        return video_psnr(iter_frames(BytesIO(stored)), iter_frames(BytesIO(made)))
    except ValueError as error:
        raise DamagedObject(f"{path}: {error}") from error


def video_psnr(theirs: Iterable[np.ndarray], ours: Iterable[np.ndarray]) -> float | None:
    """Peak signal-to-noise ratio in decibels of all frames, uint8 ``[h, w, c]`` each.

    None if all pixels are equal, 0 if the shapes differ.
    """
    total = count = 0
    for reference, frame in zip_longest(theirs, ours):
        if reference is None or frame is None or reference.shape != frame.shape:
            return 0.0
        total += int(np.square(reference.astype(np.int32) - frame).sum(dtype=np.int64))
        count += reference.size
    return 10 * math.log10(255**2 * count / total) if total else None
