"""Which pipeline serves which ``_class_name`` of a ``model_index.json``."""

from collections.abc import Sequence

from fastvideo.v1.distributed.layout import ParallelLayout
from fastvideo.v1.distributed.parallel_state import get_layout
from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.repository import INDEX, ModelRepository
from fastvideo.v1.models.registry import import_class
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.plugins import load_plugins

_PIPELINES = {
    "HunyuanVideoPipeline": "fastvideo.v1.pipelines.hunyuan:HunyuanVideoPipeline",
    "WanImageToVideoPipeline": "fastvideo.v1.pipelines.wan:WanImageToVideoPipeline",
    "WanPipeline": "fastvideo.v1.pipelines.wan:WanPipeline",
    "WanDMDPipeline": "fastvideo.v1.pipelines.wan_dmd:WanDMDPipeline",
}


def register_pipeline(class_name: str, location: str) -> None:
    """Serves ``class_name`` of a ``model_index.json`` with ``location``, written ``module:Class``."""
    _PIPELINES[class_name] = location


def build_pipeline(fastvideo_args: FastVideoArgs, phases: Sequence[Phase] = ALL_PHASES) -> ComposedPipelineBase:
    """The pipeline of the checkpoint in ``fastvideo_args``, loaded for ``phases``.

    Raises ``ValueError`` for a layout that is not the world's, or that the models of ``phases`` cannot be split for.
    """
    _check_layout(fastvideo_args.layout)
    load_plugins()
    repository = ModelRepository(fastvideo_args.model_path)
    class_name = repository.read_json(INDEX).get("_class_name")
    if class_name not in _PIPELINES:
        raise ValueError(
            f"{repository.root}/{INDEX} wants {class_name}, which no pipeline serves; there are: "
            f"{', '.join(sorted(_PIPELINES))} (register_pipeline adds one)"
        )
    return import_class(_PIPELINES[class_name])(fastvideo_args, phases)


def _check_layout(layout: ParallelLayout) -> None:
    if layout != get_layout():
        raise ValueError(
            f"layout {layout} is asked for in a world of {get_layout()}; call init_world with it in each of "
            f"{layout.size} processes before, or leave num_gpus and its sizes out"
        )
