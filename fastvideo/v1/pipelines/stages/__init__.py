"""The stages that pipelines are made of."""

from fastvideo.v1.pipelines.stages.base import PipelineStage
from fastvideo.v1.pipelines.stages.decoding import DecodingStage
from fastvideo.v1.pipelines.stages.denoising import DenoisingStage
from fastvideo.v1.pipelines.stages.image_encoding import ImageEncodingStage, ImageLatentStage
from fastvideo.v1.pipelines.stages.input_validation import InputValidationStage
from fastvideo.v1.pipelines.stages.latent_preparation import LatentPreparationStage
from fastvideo.v1.pipelines.stages.llama_text_encoding import LlamaTextEncodingStage
from fastvideo.v1.pipelines.stages.text_encoding import CLIPTextEncodingStage, TextEncodingStage
from fastvideo.v1.pipelines.stages.timestep_preparation import TimestepPreparationStage

__all__ = [
    "CLIPTextEncodingStage",
    "DecodingStage",
    "DenoisingStage",
    "ImageEncodingStage",
    "ImageLatentStage",
    "InputValidationStage",
    "LatentPreparationStage",
    "LlamaTextEncodingStage",
    "PipelineStage",
    "TextEncodingStage",
    "TimestepPreparationStage",
]
