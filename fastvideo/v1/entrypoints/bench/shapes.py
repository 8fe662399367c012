"""What is to be seen in a clip of one object on one background: both colours and the motion, told by its pixels.

The colours and motions are those that the embedded model knows. Frames are uint8 ``[t, h, w, c]``.
"""

from dataclasses import dataclass

import numpy as np

# As the model paints them.
COLOURS = {
    "red": (226, 30, 25),
    "green": (27, 186, 51),
    "blue": (38, 77, 230),
    "yellow": (240, 200, 24),
    "purple": (150, 50, 190),
    "orange": (250, 118, 14),
    "white": (245, 245, 245),
    "cyan": (30, 210, 227),
}
BACKGROUNDS = {"black": (8, 8, 8), "gray": (114, 114, 114), "navy": (13, 21, 77), "brown": (89, 51, 26)}
FAINTEST = 40.0  # distance in RGB below which nothing stands out from the background
SHORTEST_WAY = 1 / 8  # of the shorter side, from which an object has moved
GROWTH = 1.5  # of the area, from which an object has grown, or shrunk by its inverse
END = 5  # the first and the last fifth of the frames are where a motion starts and ends


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows or a prompt asks for; ``colour`` and ``motion`` are None where no object stands out."""

    background: str
    colour: str | None
    motion: str | None


def see(frames: np.ndarray) -> Scene:
    """The scene in ``frames``; what is named is the nearest that the model knows.

    The background is the median pixel of the borders, the object whatever differs from it by half of what most differs.
    The first of several frames, which the model often leaves blank or discoloured, does not count.
    """
    pixels = frames[min(1, len(frames) - 1) :].astype(np.float32)
    borders = (pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:])
    background = np.median(np.concatenate([border.reshape(-1, 3) for border in borders]), axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    strongest = np.percentile(distance, 99)
    name = _nearest(background, BACKGROUNDS)
    if strongest < FAINTEST:
        return Scene(background=name, colour=None, motion=None)
    mask = distance > strongest / 2
    return Scene(background=name, colour=_nearest(np.median(pixels[mask], axis=0), COLOURS), motion=_motion(mask))


def _nearest(pixel: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(pixel - palette[name])))


def _motion(mask: np.ndarray) -> str:
    """Where the centroid of what covers ``mask`` ``[t, h, w]`` goes, else how its area changes."""
    areas = mask.sum(axis=(1, 2))
    centroids = np.array([np.argwhere(frame).mean(axis=0) for frame in mask if frame.any()])
    num_frames = max(1, len(mask) // END)
    down, right = centroids[-num_frames:].mean(axis=0) - centroids[:num_frames].mean(axis=0)
    if max(abs(down), abs(right)) >= SHORTEST_WAY * min(mask.shape[1:]):
        if abs(down) > abs(right):
            return "down" if down > 0 else "up"
        return "right" if right > 0 else "left"
    before, after = areas[:num_frames].mean(), areas[-num_frames:].mean()
    if after >= GROWTH * before:
        return "grows"
    return "shrinks" if before >= GROWTH * after else "still"
