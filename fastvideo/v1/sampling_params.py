"""What holds for one request: canvas, length, steps, guidance, seed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from fastvideo.v1.fastvideo_args import setting
from fastvideo.v1.form import form

UNUSED_NEGATIVE = "not used: that takes classifier-free guidance, and a guidance_scale above 1"
GuidanceMode = Literal["classifier_free", "embedded"]
_NUMBERS = (  # name, rule, the least that it allows
    ("guidance_scale", "a finite number of at least 0", 0.0),
    ("guidance_scale_2", "a finite number of at least 0", 0.0),
    ("flow_shift", "a finite number above 0", math.ulp(0.0)),
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """One request, every value decided.

    ``height`` and ``width`` are pixels, ``num_frames`` pixel frames, ``fps`` frames a second.
    ``flow_shift`` None keeps the value of the checkpoint's scheduler config. ``guidance_scale_2`` is for a second
    expert, at low noise; None is ``guidance_scale``, which alone decides whether there is guidance. With
    ``guidance_mode`` ``embedded`` the model was distilled to take ``guidance_scale`` as an input, and there is no
    negative prompt.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 81
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    guidance_mode: GuidanceMode = "classifier_free"
    flow_shift: float | None = None
    seed: int = 0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "fps", "num_inference_steps"):
            value = getattr(self, name)
            if not _is_whole(value) or not 1 <= value < 2**31:
                raise ValueError(f"{name}={value!r} must be a whole number in [1, 2**31)")
        for name, rule, least in _NUMBERS:
            value = getattr(self, name)
            if value is None and name != "guidance_scale":
                continue
            if not isinstance(value, Real) or not math.isfinite(value) or value < least:
                raise ValueError(f"{name}={value!r} must be {rule}; leave it out for the model's own")
        if self.guidance_mode not in (modes := get_args(GuidanceMode)):
            raise ValueError(
                f"guidance_mode={self.guidance_mode!r} must be {' or '.join(modes)}; leave it out for the model's own"
            )
        check_text("negative_prompt", self.negative_prompt)
        if not _is_whole(self.seed):
            raise ValueError(f"seed={self.seed!r} must be a whole number in [0, 2**32)")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must lie in [0, 2**32); taken modulo 2**32 it is {self.seed % 2**32}")

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """What a run's record holds, unchecked: one older than a rule of ours must not hide the runs beside it."""
        params = object.__new__(cls)
        vars(params).update({f.name: f.default for f in fields(cls)} | dict(values))
        return params

    @property
    def is_guided(self) -> bool:
        """Whether each step also runs the model on the negative prompt."""
        return self.guides_at(self.guidance_scale)

    def guides_at(self, guidance_scale: float) -> bool:
        """:attr:`is_guided`, were the scale ``guidance_scale``."""
        return self.guidance_mode == "classifier_free" and guidance_scale > 1.0

    def with_overrides(self, **values: Any) -> Self:
        """A copy in which each value given (and not None) replaces ours; an unknown name raises ``ValueError``.

        A ``guidance_scale`` that guides, given alone, is for both experts.
        """
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{unknown[0]!r} is no sampling parameter; there are: {', '.join(sorted(known))}")
        given = {name: value for name, value in values.items() if value is not None}
        params = replace(self, **given)
        return replace(params, guidance_scale_2=None) if self.is_for_both_experts(given) else params

    def is_for_both_experts(self, overrides: Mapping[str, Any]) -> bool:
        """Whether ``overrides`` have a guidance scale that takes the place of our second expert's own, too."""
        is_alone = "guidance_scale" in overrides and "guidance_scale_2" not in overrides
        return is_alone and self.guidance_scale_2 is not None and self.guides_at(overrides["guidance_scale"])


@dataclass(frozen=True, kw_only=True)
class SamplingOverrides:
    """The same fields, each optional: what is None is decided by the model's own defaults."""

    __pydantic_config__ = form("Sampling", "What differs from the model's own defaults; empty fields keep those.")

    height: int | None = setting(None, "Height in pixels", ge=1)
    width: int | None = setting(None, "Width in pixels", ge=1)
    num_frames: int | None = setting(None, "Pixel frames of a video; 4k+1 for Wan", ge=1)
    fps: int | None = setting(None, "Frames a second of the written video", ge=1)
    num_inference_steps: int | None = setting(None, "Denoising steps", ge=1)
    guidance_scale: float | None = setting(
        None, "Classifier-free guidance; 1 or less switches it off", ge=0, allow_inf_nan=False
    )
    guidance_scale_2: float | None = setting(
        None, "Guidance of a second expert (Wan2.2 A14B), if not guidance_scale", ge=0, allow_inf_nan=False
    )
    flow_shift: float | None = setting(
        None, "Shift of the flow-matching schedule; the checkpoint's own if empty", gt=0, allow_inf_nan=False
    )
    seed: int | None = setting(None, "Seed of the run (or of the one video)", ge=0, lt=2**32)
    negative_prompt: str | None = setting(None, "What the video should not show")

    def apply(self, defaults: SamplingParams) -> SamplingParams:
        """The request that these overrides make of ``defaults``."""
        return defaults.with_overrides(**asdict(self))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_text(name: str, text: Any) -> None:
    """Raises ``ValueError`` unless ``text`` is text that can be written down, and so given to a tokenizer."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"{text[error.start]!r} at {error.start}"
        raise ValueError(f"{name} is not UTF-8: {place} is no character by itself; leave it out") from None


@dataclass(frozen=True)
class CanvasRule:
    """Which canvases a model can make: sides in multiples of ``spatial``, ``temporal`` * k + 1 frames."""

    spatial: int
    temporal: int

    def check(self, height: int, width: int, num_frames: int) -> None:
        """Raises ``ValueError`` with the value, the rule and the nearest sizes that work."""
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % self.spatial:
                nearest = _neighbours(value, self.spatial, 0)
                raise ValueError(
                    f"{name}={value} must be a multiple of {self.spatial} for this model; nearest: {nearest}"
                )
        if num_frames < 1 or (num_frames - 1) % self.temporal:
            nearest = _neighbours(num_frames, self.temporal, 1)
            raise ValueError(f"num_frames={num_frames} must be {self.temporal}k+1 for this VAE; nearest: {nearest}")


def _neighbours(value: int, multiple: int, offset: int) -> str:
    below = (value - offset) // multiple * multiple + offset
    return ", ".join(str(size) for size in (below, below + multiple) if size > 0)
