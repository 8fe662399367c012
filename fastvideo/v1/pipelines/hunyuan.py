"""HunyuanVideo text-to-video (arXiv 2412.03603; reference: diffusers ``HunyuanVideoPipeline``)."""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.stages import (
    CLIPTextEncodingStage,
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    LlamaTextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams


class HunyuanVideoPipeline(ComposedPipelineBase):
    """Text in, video out: Llama and CLIP, the HunyuanVideo transformer, its VAE."""

    _required_config_modules = [
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "vae",
        "transformer",
        "scheduler",
    ]
    default_sampling = SamplingParams(
        height=720, width=1280, num_frames=129, fps=24, num_inference_steps=50, guidance_scale=6.0
    )
    default_vae_tiling = True  # whole frames of 720 x 1280 need more memory than a GPU has

    def create_pipeline_stages(self, fastvideo_args: FastVideoArgs) -> None:
        vae, scheduler = self.get_config("vae"), self.get_module("scheduler")
        checks = InputValidationStage(self.canvas_rule(), guidance_mode=self.model_sampling().guidance_mode)
        self.add_stage("input_validation_stage", checks)
        self.add_stage(
            "text_encoding_stage", LlamaTextEncodingStage(self.get_module("text_encoder"), self.get_module("tokenizer"))
        )
        self.add_stage(
            "pooled_text_encoding_stage",
            CLIPTextEncodingStage(self.get_module("text_encoder_2"), self.get_module("tokenizer_2")),
        )
        self.add_stage("timestep_preparation_stage", TimestepPreparationStage(scheduler, even_sigmas=True))
        self.add_stage(
            "latent_preparation_stage",
            LatentPreparationStage(
                in_channels=self.get_config("transformer")["in_channels"],
                spatial_factor=vae.get("spatial_compression_ratio", 8),
                temporal_factor=vae.get("temporal_compression_ratio", 4),
            ),
        )
        self.add_stage("denoising_stage", DenoisingStage(self.get_module("transformer"), scheduler))
        self.add_stage("decoding_stage", DecodingStage(self.get_module("vae")))

    def canvas_rule(self) -> CanvasRule:
        """Sides in whole patches of whole latents, ``4k + 1`` frames."""
        vae, transformer = self.get_config("vae"), self.get_config("transformer")
        spatial = vae.get("spatial_compression_ratio", 8) * transformer.get("patch_size", 2)
        return CanvasRule(spatial, vae.get("temporal_compression_ratio", 4))

    def model_sampling(self) -> SamplingParams:
        """The defaults; a checkpoint distilled to take the guidance scale as an input has no negative prompt."""
        is_distilled = self.get_config("transformer").get("guidance_embeds", True)
        return self.default_sampling.with_overrides(guidance_mode="embedded" if is_distilled else None)
