"""Which window each head uses at each step: the published JSON form of sliding tile attention's strategies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import fsspec

from fastvideo.v1.attention.sliding_tiles import Size3


@dataclass(frozen=True)
class TileStrategy:
    """Windows in tiles by (step, layer): one ``(t, h, w)`` a head, in order; ``origin`` is for messages."""

    origin: str
    windows: Mapping[tuple[int, int], tuple[Size3, ...]]

    @property
    def num_steps(self) -> int:
        return 1 + max(step for step, _ in self.windows)

    def check_steps(self, num_inference_steps: int) -> None:
        """Raises ``ValueError`` unless the strategy is for as many steps."""
        if self.num_steps != num_inference_steps:
            raise ValueError(
                f"strategy {self.origin} is for {self.num_steps} steps, not num_inference_steps={num_inference_steps}; "
                "run as many as it has"
            )

    def of(self, step: int, layer: int) -> tuple[Size3, ...]:
        """The heads' windows; a step or layer that the strategy does not know raises ``ValueError``."""
        if (step, layer) not in self.windows:
            layers = 1 + max(layer for _, layer in self.windows)
            raise ValueError(
                f"strategy {self.origin} says nothing of step {step}, layer {layer}; it has {self.num_steps} steps and "
                f"{layers} layers, so run that many steps, or search one for this model"
            )
        return self.windows[step, layer]


def parse_strategy(text: str, origin: str) -> TileStrategy:
    """The strategy of a JSON object ``{"step_layer_head": [t, h, w], …}``; raises ``ValueError`` naming the key."""
    heads: dict[tuple[int, int], dict[int, Size3]] = {}
    try:
        entries = json.loads(text).items()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"strategy {origin} is no JSON object of windows: {error}") from None
    for key, window in entries:
        try:
            step, layer, head = (int(part) for part in key.split("_"))
            t, h, w = (int(size) for size in window)
        except (ValueError, TypeError):
            raise ValueError(
                f'strategy {origin}: {key!r}: {window!r} is not of the form "step_layer_head": [t, h, w]'
            ) from None
        heads.setdefault((step, layer), {})[head] = (t, h, w)
    if not heads:
        raise ValueError(f"strategy {origin} is empty")
    for (step, layer), windows in heads.items():
        if sorted(windows) != list(range(len(windows))):
            raise ValueError(f"strategy {origin}: step {step}, layer {layer} lacks some of its heads")
    return TileStrategy(
        origin, {place: tuple(windows[head] for head in sorted(windows)) for place, windows in heads.items()}
    )


def load_strategy(uri: str) -> TileStrategy:
    """The strategy in the file at ``uri``, any fsspec URI."""
    try:
        with fsspec.open(uri, "r", encoding="utf-8") as file:
            return parse_strategy(file.read(), uri)
    except FileNotFoundError:
        raise ValueError(f"strategy {uri!r} does not exist") from None
