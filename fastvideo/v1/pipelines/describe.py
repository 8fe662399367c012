"""What a data-set run must know of a pipeline before any weight is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvideo.v1.pipelines.inputs import IMAGE_INPUT, TEXT_INPUT, ImageUse
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams


@dataclass(frozen=True, kw_only=True)
class PipelineDescription:
    """What keys and plans are made of.

    ``components`` names, per phase, the folders of the checkpoint whose weights and configs shape its results;
    ``settings`` holds the values of its ``model_index.json`` that do.
    """

    pipeline_class: str
    model_root: str
    components: Mapping[Phase, tuple[str, ...]]
    settings: Mapping[Phase, Mapping[str, Any]]
    stage_versions: Mapping[Phase, Mapping[str, int]]
    default_sampling: SamplingParams
    canvas: CanvasRule
    input_fields: tuple[str, ...]
    image_use: ImageUse


def describe_pipeline(model_path: str) -> PipelineDescription:
    """The description of the checkpoint at ``model_path``.

    Raises ``ValueError`` if nothing serves it or one of its components, or if what its stages read cannot be planned
    for.
    """
    from fastvideo.v1.fastvideo_args import FastVideoArgs
    from fastvideo.v1.pipelines.registry import build_pipeline

    pipeline = build_pipeline(FastVideoArgs(model_path=model_path), phases=())
    pipeline.check_components()
    for entry in pipeline.all_stages:
        _check_reads(entry.name, entry.stage.reads, pipeline.image_use)
    return PipelineDescription(
        pipeline_class=type(pipeline).__name__,
        model_root=pipeline.repository.root,
        components={phase: pipeline.components(phase) for phase in ALL_PHASES},
        settings=pipeline.settings(),
        stage_versions=pipeline.stage_versions(),
        default_sampling=pipeline.sampling_defaults(),
        canvas=pipeline.canvas_rule(),
        input_fields=pipeline.input_fields(),
        image_use=pipeline.image_use,
    )


def _check_reads(name: str, reads: tuple[str, ...], image_use: ImageUse) -> None:
    if "image" in reads and image_use == "refused":
        raise ValueError(
            f"{name} reads an image, but its pipeline's image_use is 'refused'; say 'required' or 'optional'"
        )
    if not any(set(reads) <= set(kind) for kind in (TEXT_INPUT, IMAGE_INPUT)):
        raise ValueError(
            f"{name} reads {', '.join(reads)}: a data-set run encodes texts ({', '.join(TEXT_INPUT)}) and images "
            f"({', '.join(IMAGE_INPUT)}) apart, so that each is encoded once; make two stages of it"
        )
