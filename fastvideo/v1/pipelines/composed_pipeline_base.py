"""A pipeline: a list of small stages over modules of one checkpoint, built for some phases or all."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.forward_context import ForwardContext, set_forward_context
from fastvideo.v1.logger import init_logger
from fastvideo.v1.models.loader.component import check_component, load_component
from fastvideo.v1.models.loader.repository import INDEX, ModelRepository
from fastvideo.v1.pipelines.inputs import ImageUse
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams

logger = init_logger(__name__)


@dataclass(frozen=True)
class StageEntry:
    """A stage's place in its pipeline."""

    name: str
    phase: Phase
    stage: PipelineStage


class ComposedPipelineBase(ABC):
    """Base of every pipeline.

    Subclasses name the components they need in ``_required_config_modules``, those that they use where the checkpoint
    has them in ``_optional_config_modules``, and add their stages in ``create_pipeline_stages``. Only modules of the
    phases that are built are loaded; for others ``get_module`` answers None, while ``get_config`` answers always.
    """

    _required_config_modules: ClassVar[list[str]] = []
    _optional_config_modules: ClassVar[list[str]] = []

    # Which phase a component's weights serve.
    module_phases: ClassVar[dict[str, tuple[Phase, ...]]] = {
        "text_encoder": (Phase.ENCODE,),
        "text_encoder_2": (Phase.ENCODE,),
        "tokenizer": (Phase.ENCODE,),
        "tokenizer_2": (Phase.ENCODE,),
        "image_encoder": (Phase.ENCODE,),
        "image_processor": (Phase.ENCODE,),
        "transformer": (Phase.DENOISE,),
        "transformer_2": (Phase.DENOISE,),
        "scheduler": (Phase.DENOISE,),
        "vae": (Phase.DECODE,),
    }

    # What a phase hands on to the next: saved between jobs, everything else is freed.
    hands_on: ClassVar[dict[Phase, tuple[str, ...]]] = {
        Phase.ENCODE: ("prompt_embeds", "prompt_mask", "pooled_prompt_embeds", "image_embeds", "image_latents"),
        Phase.DENOISE: ("latents",),
        Phase.DECODE: ("frames",),
    }

    # Values of model_index.json that shape results, with the first phase whose results they shape.
    index_settings: ClassVar[dict[str, Phase]] = {}

    default_sampling: ClassVar[SamplingParams] = SamplingParams()
    default_vae_tiling: ClassVar[bool] = False

    def __init__(
        self,
        fastvideo_args: FastVideoArgs,
        phases: Sequence[Phase] = ALL_PHASES,
        modules: Mapping[str, Any] | None = None,
    ) -> None:
        """Loads the components of ``phases``; ``modules`` are used in place of loading those of the same name."""
        self.fastvideo_args = fastvideo_args
        self.phases = tuple(phases)
        self.repository = ModelRepository(fastvideo_args.model_path)
        self.index = self.repository.read_json(INDEX)
        self.modules: dict[str, Any] = {}
        self.stages: list[StageEntry] = []
        self.all_stages: list[StageEntry] = []
        self._load_modules(dict(modules or {}))
        self.initialize_pipeline(fastvideo_args)
        self.create_pipeline_stages(fastvideo_args)

    def initialize_pipeline(self, fastvideo_args: FastVideoArgs) -> None:
        """Work between loading and the stages: here the VAE's tiling, as asked for or as the family needs it."""
        if "vae" in self._required_config_modules and (vae := self.get_module("vae")) is not None:
            asked = fastvideo_args.vae_tiling
            vae.use_tiling = self.default_vae_tiling if asked is None else asked

    @abstractmethod
    def create_pipeline_stages(self, fastvideo_args: FastVideoArgs) -> None:
        """Calls ``add_stage`` for every stage, in order, whatever the phases."""

    def add_stage(self, name: str, stage: PipelineStage, phase: Phase | None = None) -> None:
        """Appends a stage to ``phase``: else its own, else that of the stage before it. One not built is dropped."""
        previous = self.all_stages[-1].phase if self.all_stages else Phase.ENCODE
        entry = StageEntry(name, phase or stage.phase or previous, stage)
        self.all_stages.append(entry)
        if entry.phase in self.phases:
            self.stages.append(entry)

    def get_module(self, name: str) -> Any:
        """A loaded component; None if its phase is not built, or if it is optional and the checkpoint has none."""
        if name not in (*self._required_config_modules, *self._optional_config_modules):
            raise ValueError(f"{type(self).__name__} declares no module {name!r} in _required_config_modules")
        return self.modules.get(name)

    def get_config(self, name: str) -> dict[str, Any]:
        """A component's parsed config file, whether or not its weights are loaded."""
        file = {
            "scheduler": "scheduler_config.json",
            "tokenizer": "tokenizer_config.json",
            "image_processor": "preprocessor_config.json",
        }
        return self.repository.read_json(f"{name}/{file.get(name.removesuffix('_2'), 'config.json')}")

    def canvas_rule(self) -> CanvasRule:
        """Which canvases this checkpoint can make; any, unless a family says."""
        return CanvasRule(spatial=1, temporal=1)

    def model_sampling(self) -> SamplingParams:
        """The defaults of this kind of checkpoint; the family's, unless it has several kinds."""
        return self.default_sampling

    def sampling_defaults(self) -> SamplingParams:
        """:meth:`model_sampling` under what the checkpoint's ``sampling_defaults.json`` says, if it carries one."""
        if not self.repository.exists("sampling_defaults.json"):
            return self.model_sampling()
        return self.model_sampling().with_overrides(**self.repository.read_json("sampling_defaults.json"))

    def settings(self) -> dict[Phase, dict[str, Any]]:
        """The values of ``index_settings`` by phase, null where the checkpoint does not say."""
        return {
            phase: {name: self.index.get(name) for name, first in self.index_settings.items() if first is phase}
            for phase in ALL_PHASES
        }

    def stage_versions(self) -> dict[Phase, dict[str, int]]:
        """Version of each stage of each phase, built or not: part of the key of what the phase makes."""
        return {
            phase: {type(e.stage).__name__: e.stage.version for e in self.all_stages if e.phase is phase}
            for phase in ALL_PHASES
        }

    def has_component(self, name: str) -> bool:
        """Whether the checkpoint's ``model_index.json`` names a class for component ``name``."""
        return (self.index.get(name) or [None, None])[1] is not None

    def phases_of(self, name: str) -> tuple[Phase, ...]:
        """The phases that component ``name`` serves."""
        return self.module_phases.get(name, ALL_PHASES)

    def components(self, phase: Phase) -> tuple[str, ...]:
        """The components of this checkpoint that serve ``phase``."""
        return tuple(name for name in self._used_modules() if phase in self.phases_of(name))

    @property
    def image_use(self) -> ImageUse:
        """Whether this checkpoint makes videos of images; a family whose stages read one says so."""
        return "refused"

    def input_fields(self) -> tuple[str, ...]:
        """The fields of a request on which the encode phase depends."""
        return tuple(dict.fromkeys(field for entry in self.all_stages for field in entry.stage.reads))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, context: ForwardContext | None = None) -> ForwardBatch:
        """Runs the built stages in order, under ``context`` or a new one.

        Where the context's ``inputs`` name a part of a request, only those that read no more than that part.
        """
        with set_forward_context(context) as current:
            for entry in self.stages:
                if current.inputs is None or set(entry.stage.reads) <= set(current.inputs):
                    batch = entry.stage(batch, self.fastvideo_args)
        return batch

    def check_components(self) -> None:
        """Raises ``ValueError`` for a component of any phase, built or not, that could not be loaded."""
        for name in self._used_modules():
            check_component(self.repository, name, self._class_name(name))

    def _load_modules(self, given: dict[str, Any]) -> None:
        for name in self._used_modules():
            if not set(self.phases_of(name)) & set(self.phases):
                continue
            if name in given:
                self.modules[name] = given[name]
                continue
            self.modules[name] = load_component(self.repository, name, self._class_name(name), self.fastvideo_args)

    def _class_name(self, name: str) -> str:
        if not self.has_component(name):
            raise ValueError(f"{self.repository.root}/{INDEX} names no {name}, which {type(self).__name__} needs")
        return self.index[name][1]

    def _used_modules(self) -> list[str]:
        return self._required_config_modules + [
            name for name in self._optional_config_modules if self.has_component(name)
        ]
