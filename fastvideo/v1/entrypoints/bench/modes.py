"""Approximate modes of the embedded model by name, with the rule and the windows that they need."""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fastvideo.data import EMBEDDED_MODEL
from fastvideo.v1.attention.backends.fp8 import Fp8AttentionBackend
from fastvideo.v1.entrypoints.skip_fit import fit_step_skipping
from fastvideo.v1.models.loader.component import resolve_device

OPTIONS = "fp8, fp8attn, skip=THRESHOLD, tiles"
CANVAS = {"num_frames": 17, "height": 64, "width": 64}  # what the model was trained on: one tile of tokens
# Two tiles side by side. So wide, the model paints the object three times, and each does as it is told.
TILES_CANVAS = {"num_frames": 17, "height": 64, "width": 256}
TILES, WINDOW = (1, 1, 2), (1, 1, 1)  # the whole canvas, and what a tile sees of it after the dense steps: itself
DENSE_STEPS = 0.25  # of all, the first, as in published strategies
PROMPTS = (  # for the rule
    "a red circle moves left on a black background",
    "yellow star grows, navy background",
    "on a brown background, a white box sinks downward",
    "a purple triangle that travels from left to right over gray",
)


class Modes:
    """Names, such as ``fp8+skip=0.2``, to the fields of ``FastVideoArgs`` that make them at so many ``steps``.

    The rule of step skipping is fitted once, on prompts of its own; it and the windows lie in ``folder``.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps, self.folder = steps, folder

    def engine(self, mode: str) -> dict[str, Any]:
        """The fields for ``mode``, options joined by ``+``; none for ``exact``. Raises ``ValueError`` for others."""
        fields: dict[str, Any] = {}
        for option in mode.split("+"):
            found = self._fields(option)
            if taken := fields.keys() & found:
                raise ValueError(f"mode {mode!r} sets {min(taken)} twice; leave {option!r} out")
            fields |= found
        return fields

    def _fields(self, option: str) -> dict[str, Any]:
        name, _, value = option.partition("=")
        match name:
            case "exact":
                return {}
            case "fp8":
                return {"quantization": "fp8"}
            case "fp8attn":
                return {"attention_backend": "FP8_ATTN"}
            case "skip":
                return {"step_skip_threshold": _threshold(value, option), "step_skip_rule": self._rule()}
            case "tiles":
                return {"attention_backend": "SLIDING_TILE_ATTN", "sliding_tile_strategy": self._strategy()}
        raise ValueError(f"mode option {option!r} does not exist; there are: {OPTIONS}")

    def _rule(self) -> str:
        file = self.folder / "rule.json"
        if not file.exists():
            rule = fit_step_skipping(EMBEDDED_MODEL, PROMPTS, 1, 1, num_inference_steps=self.steps)
            file.write_text(json.dumps(asdict(rule)))
        return str(file)

    def _strategy(self) -> str:
        file, config = self.folder / "windows.json", _transformer_config()
        places = product(range(self.steps), range(config["num_layers"]), range(config["num_attention_heads"]))
        dense_steps = round(DENSE_STEPS * self.steps)
        windows = {f"{step}_{layer}_{head}": TILES if step < dense_steps else WINDOW for step, layer, head in places}
        file.write_text(json.dumps(windows))
        return str(file)


def canvas_of(mode: str) -> dict[str, int]:
    """Sizes of a mode's videos: windows need several tiles."""
    return TILES_CANVAS if "tiles" in mode.split("+") else CANVAS


def obstacle(mode: str) -> str | None:
    """Why ``mode`` cannot be had on this machine, or None."""
    if "fp8attn" not in mode.split("+"):
        return None
    head_size = _transformer_config()["attention_head_dim"]
    return Fp8AttentionBackend.obstacle(head_size, torch.float32, resolve_device("auto"))


def _transformer_config() -> dict[str, int]:
    return json.loads((Path(EMBEDDED_MODEL) / "transformer" / "config.json").read_text())


def _threshold(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"mode option {option!r} needs a number, as skip=0.2 has") from None
