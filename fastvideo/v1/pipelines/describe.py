"""What a data-set run must know of a pipeline before any weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import fsspec

from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams


@dataclass(frozen=True, kw_only=True)
class PipelineDescription:
    """``components`` names, per phase, the folders of the checkpoint whose weights and configs shape its results."""

    pipeline_class: str
    model_root: str
    components: Mapping[Phase, tuple[str, ...]]
    stage_versions: Mapping[Phase, Mapping[str, int]]
    default_sampling: SamplingParams
    canvas: CanvasRule
    input_fields: tuple[str, ...]


def describe_pipeline(model_path: str) -> PipelineDescription:
    """The description of the checkpoint at ``model_path``, read from ``model_index.json``."""
    defaults = _read_json(model_path, "sampling_defaults.json", missing={})
    return PipelineDescription(
        pipeline_class=_read_json(model_path, "model_index.json")["_class_name"],
        model_root=model_path,
        components={
            Phase.ENCODE: ("text_encoder", "tokenizer"),
            Phase.DENOISE: ("transformer", "scheduler"),
            Phase.DECODE: ("vae",),
        },
        stage_versions={
            Phase.ENCODE: {"InputValidationStage": 1, "TextEncodingStage": 1},
            Phase.DENOISE: {"TimestepPreparationStage": 1, "LatentPreparationStage": 1, "DenoisingStage": 1},
            Phase.DECODE: {"DecodingStage": 1},
        },
        default_sampling=SamplingParams().with_overrides(**defaults),
        canvas=CanvasRule(spatial=16, temporal=4),
        input_fields=("prompt",),
    )


def _read_json(model_path: str, name: str, missing: dict | None = None) -> dict:
    try:
        with fsspec.open(f"{model_path.rstrip('/')}/{name}", "r") as file:
            return json.load(file)
    except FileNotFoundError:
        if missing is None:
            raise ValueError(f"{model_path} has no {name}: a model directory in the Diffusers layout has one") from None
        return missing
