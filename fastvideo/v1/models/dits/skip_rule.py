"""What step skipping must know of a model: from the change of what its blocks see to the change of what they do
(TeaCache, arXiv 2411.19108, section 3.3).
"""

import json
import math
from dataclasses import dataclass

import fsspec

from fastvideo.v1.models.base import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SkipRule:
    """``coefficients``, highest power first, of the polynomial from distance to estimated change.

    The first ``first_steps`` and the last ``last_steps`` of a video are always computed.
    """

    coefficients: tuple[float, ...]
    first_steps: int
    last_steps: int

    def __post_init__(self) -> None:
        if not self.coefficients or not all(math.isfinite(value) for value in self.coefficients):
            raise ValueError(f"coefficients={self.coefficients} must be at least one finite number")
        if self.first_steps < 1 or self.last_steps < 0:
            raise ValueError(
                f"first_steps={self.first_steps}, last_steps={self.last_steps} must be at least 1 and 0: the first "
                "step has nothing to reuse"
            )

    def estimate(self, distance: float) -> float:
        """The estimated change; below zero where a polynomial is, as in the method's own code."""
        total = 0.0
        for coefficient in self.coefficients:
            total = total * distance + coefficient
        return total

    def forced_steps(self, num_steps: int) -> set[int]:
        """Steps that are computed whatever the change."""
        return {step for step in range(num_steps) if step < self.first_steps or step >= num_steps - self.last_steps}


# The authors' own coefficients: Wan's from the timestep projection, HunyuanVideo's from the first block's modulated
# input. Checkpoints of these sizes take text alone; image-to-video models have others of their own.
_PUBLISHED: tuple[tuple[str, dict[str, int | None], SkipRule], ...] = (
    (
        "WanTransformerConfig",
        {"num_attention_heads": 12, "num_layers": 30, "in_channels": 16, "image_dim": None},
        SkipRule(
            coefficients=(-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
            first_steps=5,
            last_steps=1,
        ),
    ),
    (
        "WanTransformerConfig",
        {"num_attention_heads": 40, "num_layers": 40, "in_channels": 16, "image_dim": None},
        SkipRule(
            coefficients=(-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
            first_steps=5,
            last_steps=1,
        ),
    ),
    (
        "HunyuanVideoTransformerConfig",
        {"num_attention_heads": 24, "num_layers": 20, "num_single_layers": 40, "in_channels": 16},
        SkipRule(
            coefficients=(7.33226126e2, -4.01131952e2, 6.75869174e1, -3.14987800, 9.61237896e-2),
            first_steps=1,
            last_steps=1,
        ),
    ),
)


def rule_for(config: ModelConfig, num_experts: int, uri: str | None) -> SkipRule:
    """The rule in the file at ``uri``, else the published one of the transformer that has ``config``.

    Raises ``ValueError`` where there is neither; none is published for two experts.
    """
    if uri is not None:
        return load_rule(uri)
    for config_name, sizes, rule in _PUBLISHED:
        matches = all(getattr(config, name, None) == size for name, size in sizes.items())
        if num_experts == 1 and type(config).__name__ == config_name and matches:
            return rule
    raise ValueError(
        "step_skip_threshold: no coefficients are published for this checkpoint, only for Wan2.1 text-to-video 1.3B "
        "and 14B and HunyuanVideo; fit some (`fastvideo fit-step-skipping`) and set step_skip_rule to their file"
    )


def load_rule(uri: str) -> SkipRule:
    """The rule in the JSON file at ``uri``, any fsspec URI: an object of the fields of :class:`SkipRule`."""
    try:
        with fsspec.open(uri, "r", encoding="utf-8") as file:
            values = json.load(file)
        return SkipRule(
            coefficients=tuple(float(value) for value in values["coefficients"]),
            first_steps=int(values["first_steps"]),
            last_steps=int(values["last_steps"]),
        )
    except FileNotFoundError:
        raise ValueError(f"step_skip_rule {uri!r} does not exist") from None
    except KeyError as error:
        raise ValueError(f"step_skip_rule {uri!r} lacks {error}; `fastvideo fit-step-skipping` writes one") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"step_skip_rule {uri!r} is no rule of step skipping: {error}") from None
