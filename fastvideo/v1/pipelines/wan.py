"""Wan2.1 text-to-video (arXiv 2503.20314; reference: diffusers ``WanPipeline``)."""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.stages import (
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams


class WanPipeline(ComposedPipelineBase):
    """Text in, video out: UMT5, the Wan transformer, the Wan VAE."""

    _required_config_modules = ["text_encoder", "tokenizer", "vae", "transformer", "scheduler"]
    default_sampling = SamplingParams(
        height=480, width=832, num_frames=81, fps=16, num_inference_steps=50, guidance_scale=5.0
    )

    def create_pipeline_stages(self, fastvideo_args: FastVideoArgs) -> None:
        transformer, vae = self.get_config("transformer"), self.get_config("vae")
        scheduler = self.get_module("scheduler")
        self.add_stage("input_validation_stage", InputValidationStage(self.canvas_rule()))
        self.add_stage(
            "text_encoding_stage", TextEncodingStage(self.get_module("text_encoder"), self.get_module("tokenizer"))
        )
        self.add_stage("timestep_preparation_stage", TimestepPreparationStage(scheduler))
        self.add_stage(
            "latent_preparation_stage",
            LatentPreparationStage(
                in_channels=transformer["in_channels"],
                spatial_factor=vae.get("scale_factor_spatial", 8),
                temporal_factor=vae.get("scale_factor_temporal", 4),
            ),
        )
        self.add_stage("denoising_stage", DenoisingStage(self.get_module("transformer"), scheduler))
        self.add_stage("decoding_stage", DecodingStage(self.get_module("vae")))

    def canvas_rule(self) -> CanvasRule:
        """Sides in whole patches of whole latents, ``4k + 1`` frames."""
        vae, patch = self.get_config("vae"), self.get_config("transformer")["patch_size"]
        return CanvasRule(vae.get("scale_factor_spatial", 8) * patch[1], vae.get("scale_factor_temporal", 4))
