"""What holds for one request: canvas, length, steps, guidance, seed."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from fastvideo.v1.fastvideo_args import setting
from fastvideo.v1.form import form


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
    guidance_mode: Literal["classifier_free", "embedded"] = "classifier_free"
    flow_shift: float | None = None
    seed: int = 0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "fps", "num_inference_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must lie in [0, 2**32); taken modulo 2**32 it is {self.seed % 2**32}")

    @property
    def is_guided(self) -> bool:
        """Whether each step also runs the model on the negative prompt."""
        return self.guides_at(self.guidance_scale)

    def guides_at(self, guidance_scale: float) -> bool:
        """:attr:`is_guided`, were the scale ``guidance_scale``."""
        return self.guidance_mode == "classifier_free" and guidance_scale > 1.0

    def with_overrides(self, **values: Any) -> Self:
        """A copy in which each value given (and not None) replaces ours; an unknown name raises ``ValueError``."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{unknown[0]!r} is no sampling parameter; there are: {', '.join(sorted(known))}")
        return replace(self, **{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class SamplingOverrides:
    """The same fields, each optional: what is None is decided by the model's own defaults."""

    __pydantic_config__ = form("Sampling", "What differs from the model's own defaults; empty fields keep those.")

    height: int | None = setting(None, "Height in pixels", ge=1)
    width: int | None = setting(None, "Width in pixels", ge=1)
    num_frames: int | None = setting(None, "Pixel frames of a video; 4k+1 for Wan", ge=1)
    fps: int | None = setting(None, "Frames a second of the written video", ge=1)
    num_inference_steps: int | None = setting(None, "Denoising steps", ge=1)
    guidance_scale: float | None = setting(None, "Classifier-free guidance; 1 or less switches it off")
    guidance_scale_2: float | None = setting(None, "Guidance of a second expert (Wan2.2 A14B), where there is guidance")
    flow_shift: float | None = setting(None, "Shift of the flow-matching schedule; the checkpoint's own if empty")
    seed: int | None = setting(None, "Seed of the run (or of the one video)", ge=0, lt=2**32)
    negative_prompt: str | None = setting(None, "What the video should not show")

    def apply(self, defaults: SamplingParams) -> SamplingParams:
        """The request that these overrides make of ``defaults``."""
        return defaults.with_overrides(**asdict(self))


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
