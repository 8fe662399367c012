"""What is seen in clips drawn here: each colour on each background, in each motion, and nothing where nothing is."""

from itertools import product

import numpy as np
import pytest

from fastvideo.v1.entrypoints.bench.shape_prompts import draw_prompts
from fastvideo.v1.entrypoints.bench.shapes import Scene, see

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 240, 0),
    "purple": (128, 0, 160),
    "orange": (255, 150, 0),
    "white": (255, 255, 255),
    "cyan": (0, 230, 255),
}
BACKGROUNDS = {"black": (0, 0, 0), "gray": (120, 120, 120), "navy": (0, 0, 90), "brown": (100, 60, 30)}
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
MOTIONS = (*WAYS, "grows", "shrinks", "still")


def render(scene: Scene, height: int = 64, width: int = 64, num_frames: int = 17) -> np.ndarray:
    """A box or a circle of some size that does as it is told, with noise on all pixels."""
    random = np.random.default_rng()
    is_box, size = random.random() < 0.5, random.uniform(7, 9)
    down, right = WAYS.get(scene.motion, (0, 0))
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3))
    for frame, time in zip(frames, np.linspace(-1, 1, num_frames), strict=True):
        away_y, away_x = np.abs(y - height / 2 - 14 * time * down), np.abs(x - width / 2 - 14 * time * right)
        radius = size * {"grows": 1 + time / 2, "shrinks": 1 - time / 2}.get(scene.motion, 1)
        inside = np.maximum(away_y, away_x) < radius if is_box else np.hypot(away_y, away_x) < radius
        frame[:] = np.where(inside[..., None], COLOURS[scene.colour], BACKGROUNDS[scene.background])
    return np.clip(frames + random.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_clip_shows_what_was_drawn(colour, background):
    turn = list(COLOURS).index(colour) * len(BACKGROUNDS) + list(BACKGROUNDS).index(background)
    scene = Scene(background=background, colour=colour, motion=MOTIONS[turn % len(MOTIONS)])
    assert see(render(scene)) == scene


def test_a_larger_canvas_is_told_alike():
    scene = Scene(background="brown", colour="white", motion="still")
    frames = render(scene, height=64, width=160, num_frames=5)
    assert see(frames) == scene
    slow = np.stack([np.roll(frame, step, axis=1) for step, frame in enumerate(frames)])
    assert see(slow).motion == "still", "four pixels are no way"


def test_nothing_is_seen_where_nothing_is():
    frames = np.random.default_rng().integers(100, 130, (17, 64, 64, 3), dtype=np.uint8)
    assert see(frames) == Scene(background="gray", colour=None, motion=None)


def test_prompts_say_what_they_ask_for_in_words_of_the_model():
    drawn = draw_prompts(500, seed=7)
    assert drawn == draw_prompts(500, seed=7) and drawn != draw_prompts(500, seed=8)
    assert {(scene.colour, scene.background) for _, scene in drawn} == set(product(COLOURS, BACKGROUNDS))
    assert {scene.motion for _, scene in drawn} == set(MOTIONS)
    for prompt, scene in drawn:
        assert f"{scene.colour} " in prompt and scene.background in prompt
        if scene.motion in WAYS and "from" not in prompt and "moves" in prompt:
            assert f"moves {scene.motion}" in prompt
