"""What a sample is, and the ids and seeds that follow from it alone."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastvideo.v1.dataset.canonical import canonical_json, digest
from fastvideo.v1.pipelines.inputs import IMAGE_INPUT
from fastvideo.v1.sampling_params import SamplingParams

ID_LENGTH = 32
OVERRIDE_FIELDS = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video to make. ``overrides`` holds only what differs from the run's own sampling parameters.

    ``image`` is the SHA-256 of the file of the image that it starts from, if it does.
    """

    id: str
    prompt: str
    negative_prompt: str
    seed: int
    image: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    requested: int = 1

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The sample's request, ``defaults`` being the run's."""
        return defaults.with_overrides(seed=self.seed, negative_prompt=self.negative_prompt, **self.overrides)


def sample_id(
    prompt: str, negative_prompt: str, seed: int, overrides: Mapping[str, Any], image: str | None = None
) -> str:
    """A hash of what the sample is; never of its position, shard or rank, nor of its image's place and name."""
    values = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, "overrides": dict(overrides)}
    return digest(values if image is None else values | {"image": image}, ID_LENGTH)


def input_id(fields: Mapping[str, Any]) -> str:
    """A hash of exactly what the encode stages read, such as ``{"prompt": text}``."""
    return digest(dict(fields), ID_LENGTH)


def image_input_id(image: str, height: int, width: int, num_frames: int) -> str:
    """The input id of an image, told by the SHA-256 of its file, on a canvas."""
    return input_id(dict(zip(IMAGE_INPUT, (image, height, width, num_frames), strict=True)))


def derive_seed(prompt: str, run_seed: int, repeat: int) -> int:
    """The seed of a prompt's ``repeat``-th video in a run, in [0, 2**32)."""
    return int.from_bytes(hashlib.sha256(canonical_json([prompt, run_seed, repeat])).digest()[:4], "big")
