"""What the encode phase works on: a text by itself, or an image with the canvas that it is fitted to."""

from typing import Literal

TEXT_INPUT = ("prompt",)
IMAGE_INPUT = ("image", "height", "width", "num_frames")

ImageUse = Literal["refused", "optional", "required"]  # what a model says to an image in a request
