"""The image that a video starts from, as the transformer takes it.

Legend: ``b`` samples, ``i`` image tokens, ``e`` width of image embeddings, ``c t h w`` latent channels, frames, rows,
columns.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from fastvideo.v1.fastvideo_args import FastVideoArgs
from fastvideo.v1.pipelines.phase import Phase
from fastvideo.v1.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.v1.pipelines.stages.base import PipelineStage, check_finite

_READS = ("image", "height", "width", "num_frames")  # of both stages, since their results are stored as one object


class ImageEncodingStage(PipelineStage):
    """A CLIP vision tower's hidden states before its last layer, ``[b, i, e]``, as Wan2.1 was trained on them."""

    phase = Phase.ENCODE
    reads = _READS

    def __init__(self, image_encoder: Any, image_processor: Any) -> None:
        self.image_encoder = image_encoder
        self.image_processor = image_processor

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        assert batch.image is not None, "input validation asks for an image"
        pictures = [Image.fromarray(image.numpy()) for image in batch.image]
        pixels = self.image_processor(images=pictures, return_tensors="pt").pixel_values
        device = next(self.image_encoder.parameters()).device
        batch.image_embeds = self.image_encoder(pixels.to(device), skip_layers=1)
        return batch

    def verify_output(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        check_finite(batch, "image_embeds", mend="try text_encoder_precision='float32'")


class ImageLatentStage(PipelineStage):
    """The image as latents, float32, normalised: the posterior's mode, not a sample of it. Without an image, nothing.

    By default the VAE encodes a whole video, the image and then grey, and a mask of as many channels as a latent frame
    has pixel frames says which were given: ``[b, temporal_factor + c, t, h, w]``. With ``first_frame_only`` the result
    is the image's own latent frame, ``[b, c, 1, h, w]``.
    """

    phase = Phase.ENCODE
    reads = _READS

    def __init__(self, vae: Any, first_frame_only: bool = False) -> None:
        self.vae = vae
        self.first_frame_only = first_frame_only

    def forward(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> ForwardBatch:
        if batch.image is None:
            return batch
        sampling = batch.sampling
        device = next(self.vae.parameters()).device
        images = torch.stack([to_canvas(image, sampling.height, sampling.width) for image in batch.image])
        video = rearrange(images, "b c h w -> b c 1 h w").to(device)
        if self.first_frame_only:
            batch.image_latents = self.vae.encode(video)
            return batch
        video = torch.nn.functional.pad(video, (0, 0, 0, 0, 0, sampling.num_frames - 1))
        latents = self.vae.encode(video)
        mask = latents.new_zeros(len(latents), self.vae.temporal_factor, *latents.shape[2:])
        mask[:, :, 0] = 1
        batch.image_latents = torch.cat((mask, latents), dim=1)
        return batch

    def verify_output(self, batch: ForwardBatch, fastvideo_args: FastVideoArgs) -> None:
        check_finite(batch, "image_latents", mend="try vae_precision='float32'")


def to_canvas(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 ``[h, w, 3]`` of any size to ``[3, height, width]`` in [-1, 1], stretched as diffusers' ``VideoProcessor``
    does.
    """
    picture = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return rearrange(torch.from_numpy(np.array(picture)), "h w c -> c h w") / 255 * 2 - 1
