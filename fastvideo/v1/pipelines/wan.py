"""Wan2.1 and Wan2.2 (arXiv 2503.20314; references: diffusers ``WanPipeline``, ``WanImageToVideoPipeline``).

What a checkpoint is, its ``model_index.json`` says: with ``boundary_ratio`` two experts share the steps (Wan2.2 A14B),
with ``expand_timesteps`` each latent frame may have its own timestep (Wan2.2 TI2V).
"""

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.loader.repository import INDEX
from fastvideo.v1.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.v1.pipelines.inputs import ImageUse
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.stages import (
    DecodingStage,
    DenoisingStage,
    ImageEncodingStage,
    ImageLatentStage,
    InputValidationStage,
    LatentPreparationStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.v1.sampling_params import CanvasRule, SamplingParams


class WanPipeline(ComposedPipelineBase):
    """Text in, video out: UMT5, the Wan transformer or two of them, the Wan VAE. Wan2.2 TI2V takes an image, too."""

    _required_config_modules = ["text_encoder", "tokenizer", "vae", "transformer", "scheduler"]
    _optional_config_modules = ["transformer_2"]
    index_settings = {"expand_timesteps": Phase.ENCODE, "boundary_ratio": Phase.DENOISE}
    default_sampling = SamplingParams(
        height=480, width=832, num_frames=81, fps=16, num_inference_steps=50, guidance_scale=5.0
    )
    experts_sampling = default_sampling.with_overrides(num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)

    @property
    def image_use(self) -> ImageUse:
        """Whether this checkpoint makes videos of images."""
        return "optional" if self.expands_timesteps else "refused"

    @property
    def expands_timesteps(self) -> bool:
        return bool(self.index.get("expand_timesteps"))

    def phases_of(self, name: str) -> tuple[Phase, ...]:
        """As the table says; the VAE encodes images, too."""
        if name == "vae" and self.image_use != "refused":
            return (Phase.ENCODE, Phase.DECODE)
        return super().phases_of(name)

    def create_pipeline_stages(self, fastvideo_args: FastVideoArgs) -> None:
        checks = InputValidationStage(self.canvas_rule(), self.image_use, guidance_mode="classifier_free")
        self.add_stage("input_validation_stage", checks)
        self.add_stage(
            "text_encoding_stage", TextEncodingStage(self.get_module("text_encoder"), self.get_module("tokenizer"))
        )
        self.add_image_stages()
        self.add_denoising_stages()
        self.add_stage("decoding_stage", DecodingStage(self.get_module("vae")))

    def add_image_stages(self) -> None:
        """Adds what encodes the image."""
        if self.image_use != "refused":
            stage = ImageLatentStage(self.get_module("vae"), first_frame_only=self.expands_timesteps)
            self.add_stage("image_latent_stage", stage)

    def add_denoising_stages(self) -> None:
        """Adds timesteps, noise and the loop.

        Without an image all frames of TI2V share one timestep: a scalar then gives what diffusers' repetition of it for
        every token gives, at the cost of one.
        """
        boundary_ratio = self.index.get("boundary_ratio")
        if bool(boundary_ratio) != self.has_component("transformer_2"):
            raise ValueError(
                f"{self.repository.root}/{INDEX}: boundary_ratio={boundary_ratio} and transformer_2="
                f"{self.index.get('transformer_2')} must come together: two experts, and where they share the steps"
            )
        transformer, vae = self.get_config("transformer"), self.get_config("vae")
        scheduler = self.get_module("scheduler")
        num_timesteps = self.get_config("scheduler").get("num_train_timesteps", 1000)
        self.add_stage("timestep_preparation_stage", TimestepPreparationStage(scheduler))
        self.add_stage(
            "latent_preparation_stage",
            LatentPreparationStage(
                in_channels=transformer.get("out_channels") or transformer["in_channels"],
                spatial_factor=vae.get("scale_factor_spatial", 8),
                temporal_factor=vae.get("scale_factor_temporal", 4),
            ),
        )
        self.add_stage(
            "denoising_stage",
            DenoisingStage(
                self.get_module("transformer"),
                scheduler,
                self.get_module("transformer_2"),
                boundary=(boundary_ratio or 0.0) * num_timesteps,
                holds_first_frames=self.expands_timesteps,
            ),
        )

    def canvas_rule(self) -> CanvasRule:
        """Sides in whole patches of whole latents, ``4k + 1`` frames."""
        vae, patch = self.get_config("vae"), self.get_config("transformer")["patch_size"]
        return CanvasRule(vae.get("scale_factor_spatial", 8) * patch[1], vae.get("scale_factor_temporal", 4))

    def model_sampling(self) -> SamplingParams:
        """Steps and guidance of Wan2.1's and Wan2.2's own repositories for each of their models, at the smaller canvas
        where it has two. The flow shift is the checkpoint's own, and there is no negative prompt.
        """
        if self.has_component("transformer_2"):
            return self.experts_sampling
        if self.expands_timesteps:
            return self.default_sampling.with_overrides(height=704, width=1280, num_frames=121, fps=24)
        return self.default_sampling


class WanImageToVideoPipeline(WanPipeline):
    """Image and text in, video out: as :class:`WanPipeline`, with CLIP's vision tower in Wan2.1."""

    _optional_config_modules = ["image_encoder", "image_processor", "transformer_2"]
    default_sampling = WanPipeline.default_sampling.with_overrides(num_inference_steps=40)
    experts_sampling = default_sampling.with_overrides(guidance_scale=3.5)

    @property
    def image_use(self) -> ImageUse:
        """Whether this checkpoint makes videos of images: of nothing else."""
        return "required"

    def add_image_stages(self) -> None:
        """Adds what encodes the image."""
        if self.has_component("image_encoder"):
            encoder, processor = self.get_module("image_encoder"), self.get_module("image_processor")
            self.add_stage("image_encoding_stage", ImageEncodingStage(encoder, processor))
        super().add_image_stages()
