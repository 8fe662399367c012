"""Prompts in the words that the embedded model was trained on, each with the scene that it asks for."""

from random import Random

from fastvideo.v1.entrypoints.bench.shapes import BACKGROUNDS, COLOURS, Scene

SHAPES = ("circle", "ball", "disc", "square", "box", "triangle", "star")
MOTIONS = {
    "left": ("moves left", "travels from right to left"),
    "right": ("moves right", "travels from left to right"),
    "up": ("moves up", "rises", "climbs", "rises upward", "travels from bottom to top"),
    "down": ("moves down", "falls", "sinks", "sinks downward", "travels from top to bottom"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "still": ("stays still", "stays still in the middle"),
}
FORMS = (
    "{article} {object} {motion} on a {background} background",
    "{object} {motion}, {background} background",
    "on a {background} background, {article} {object} {motion}",
    "a video of {article} {object} that {motion} over {background}",
)


def draw_prompts(number: int, seed: int) -> list[tuple[str, Scene]]:
    """So many sentences, the same for the same seed, and what each should show."""
    random = Random(seed)
    return [_draw(random) for _ in range(number)]


def _draw(random: Random) -> tuple[str, Scene]:
    colour, motion = random.choice(tuple(COLOURS)), random.choice(tuple(MOTIONS))
    background = random.choice(tuple(BACKGROUNDS))
    prompt = random.choice(FORMS).format(
        article="an" if colour == "orange" else "a",
        object=f"{colour} {random.choice(SHAPES)}",
        motion=random.choice(MOTIONS[motion]),
        background=background,
    )
    return prompt, Scene(background=background, colour=colour, motion=motion)
