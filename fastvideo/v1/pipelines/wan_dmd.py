"""Wan distilled to three steps with full attention (FastWan2.2-TI2V-5B-FullAttn; reference: FastVideo's
``DmdDenoisingStage``). Those distilled with sparse attention, such as FastWan2.1, the transformer refuses.
"""

from dataclasses import replace

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.models.schedulers.dmd import DMDScheduler
from fastvideo.v1.pipelines.wan import WanPipeline


class WanDMDPipeline(WanPipeline):
    """Wan's stages over the few-step sampler.

    The published checkpoints name a scheduler that they are not sampled with: unless theirs is a ``DMDScheduler``, the
    timesteps 1000, 757, 522 at shift 8 are used, those of their distillation.
    """

    default_sampling = replace(
        WanPipeline.default_sampling, height=448, num_frames=61, num_inference_steps=3, guidance_scale=1.0
    )

    def initialize_pipeline(self, fastvideo_args: FastVideoArgs) -> None:
        super().initialize_pipeline(fastvideo_args)
        scheduler = self.get_module("scheduler")
        if scheduler is not None and not isinstance(scheduler, DMDScheduler):
            self.modules["scheduler"] = DMDScheduler()
