"""What the pipelines ask of a video autoencoder, whichever model it belongs to.

Legend: ``b`` batch, ``z`` latent channels, ``t h w`` latent frames, rows and columns; a latent frame is ``F`` pixel
frames (the first: one), a latent row or column ``S`` pixels.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from fastvideo.v1.models.base import Model


class VideoAutoencoder(Model):
    """Pixels in [-1, 1] to the latents that a DiT works on, and back.

    Latents are *normalised* on both sides: ``encode`` returns what a DiT reads and ``decode`` takes what it made.
    diffusers' autoencoders take and return raw latents; ``normalize`` and ``denormalize`` go between the two. With
    ``use_tiling`` large pictures go through in blended tiles: less memory, slightly other pixels.
    """

    spatial_factor: int
    temporal_factor: int
    out_channels: int
    post_quant_conv: nn.Conv3d
    encoder: nn.Module
    decoder: nn.Module
    use_tiling = False

    def block_sequences(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        encoder, decoder = self.encoder, self.decoder
        down, up = cast(nn.ModuleList, encoder.down_blocks), cast(nn.ModuleList, decoder.up_blocks)
        middle = cast(nn.Module, encoder.mid_block), cast(nn.Module, decoder.mid_block)
        return [(encoder, [*down, middle[0]]), (decoder, [middle[1], *up])]

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents ``[b z t h w]`` to the DiT's, in float32."""
        raise NotImplementedError

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The DiT's latents ``[b z t h w]`` to raw ones, in float32."""
        raise NotImplementedError

    def encode_moments(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior's mean and log-variance, raw, each ``[b z t h w]``; see ``encode``."""
        raise NotImplementedError

    def decode_stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """``decode`` a few frames at a time, in order, not yet clamped to [-1, 1]."""
        raise NotImplementedError

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Pixels ``[b 3 F(t-1)+1 Sh Sw]`` in [-1, 1] to normalised latents ``[b z t h w]``, the posterior's mode.

        The result is float32. Raises ``ValueError`` for frame counts and sides that are not of this form.
        """
        return self.normalize(self.encode_moments(video)[0])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents ``[b z t h w]`` to pixels ``[b 3 F(t-1)+1 Sh Sw]`` in [-1, 1], in the model's dtype."""
        b, _, t, h, w = latents.shape
        frames, space = 1 + self.temporal_factor * (t - 1), self.spatial_factor
        dtype = self.post_quant_conv.weight.dtype
        video = latents.new_empty(b, self.out_channels, frames, space * h, space * w, dtype=dtype)
        first = 0
        for chunk in self.decode_stream(latents):
            video[:, :, first : first + chunk.shape[2]] = chunk
            first += chunk.shape[2]
        return video.clamp_(-1.0, 1.0)

    def check_video(self, video: torch.Tensor) -> None:
        """Raises ``ValueError`` unless frames and sides of ``[b 3 t h w]`` pixels make whole latents."""
        frames, height, width = video.shape[2:]
        time, space = self.temporal_factor, self.spatial_factor
        if (frames - 1) % time:
            below = (frames - 1) // time * time + 1
            raise ValueError(f"num_frames={frames} must be {time}k+1 for this VAE; nearest: {below}, {below + time}")
        if height % space or width % space:
            raise ValueError(
                f"height={height}, width={width} must be divisible by {space} for this VAE; "
                f"nearest below: {height // space * space}, {width // space * space}"
            )
