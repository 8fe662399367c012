"""The causal video autoencoders of Wan 2.1 (arXiv 2503.20314, section 4.1) and Wan 2.2 (``is_residual``).

Legend: ``b`` batch, ``c`` channels, ``t`` frames (pixel or latent), ``h w`` rows and columns. A video of ``4k+1`` pixel
frames has ``k+1`` latent frames: the first frame is a chunk of its own, each later chunk is four pixel frames or one
latent frame. Parameters are named as in diffusers' ``AutoencoderKLWan``, the reference. ``s`` is how many pixels a side
a latent covers: 8, or 16 where the autoencoder works on patches of 2 pixels a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from fastvideo.v1.models.base import ModelConfig
from fastvideo.v1.models.vaes.base import VideoAutoencoder
from fastvideo.v1.models.vaes.causal_conv import CausalConv3d, FrameCache
from fastvideo.v1.models.vaes.channels_last import use_channels_last
from fastvideo.v1.models.vaes.row_bands import split_rows, use_bands
from fastvideo.v1.models.vaes.tiling import TileGrid, process_tiles
from fastvideo.v1.models.vaes.wan_blocks import (
    ChannelRMSNorm,
    Downsample,
    MidBlock,
    ResidualBlock,
    Upsample,
    norm_silu_conv,
)
from fastvideo.v1.models.vaes.wan_residual import ResidualDownBlock, ResidualUpBlock, patchify, unpatchify

# Tiles of 256 every 192, as diffusers has them: pixels to decode, patches to encode; but of pixels alone it decides
# whether there are any.
_TILE = 256
_TILE_STRIDE = 192


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig(ModelConfig):
    """``vae/config.json``; the defaults are those that files written before a key existed rely on."""

    unread_keys: ClassVar[tuple[str, ...]] = ("dropout",)

    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3
    is_residual: bool = False
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        if self.attn_scales:
            raise ValueError(f"attn_scales={self.attn_scales} is not supported; published Wan VAEs have []")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(
                f"latents_mean and latents_std have {len(self.latents_mean)} and {len(self.latents_std)} values; "
                f"both must have z_dim={self.z_dim}"
            )

    @property
    def patch(self) -> int:
        """Pixels a side that are one row and column of the encoder's input and of the decoder's output."""
        return self.patch_size or 1


class UpBlock(nn.Module):
    """Residual blocks, then an upsampling unless this is the last: ``[b i t h w] -> [b o t h w]`` before it."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.resnets = nn.ModuleList([ResidualBlock(i, o) for i, o in pairwise(widths)])
        self.upsamplers = nn.ModuleList([] if upsample is None else [upsample])

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x, cache)
        return x


class Encoder(nn.Module):
    """A chunk of patches ``[b c t h w]`` (1 frame, then 4 a chunk) to moments ``[b 2*z 1 h/8 w/8]``."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        layers: list[nn.Module] = []
        for level, (in_channels, out_channels) in enumerate(pairwise(widths)):
            last = level == len(config.dim_mult) - 1
            downsample = None if last else Downsample(out_channels, temporal=config.temperal_downsample[level])
            if config.is_residual:
                layers.append(ResidualDownBlock(in_channels, out_channels, config.num_res_blocks, downsample))
                continue
            layers.append(ResidualBlock(in_channels, out_channels))
            layers += [ResidualBlock(out_channels, out_channels) for _ in range(config.num_res_blocks - 1)]
            layers += [] if downsample is None else [downsample]
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelRMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim)

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        x = self.conv_in(x, cache)
        for layer in self.down_blocks:
            x = layer(x, cache)
        x = self.mid_block(x, cache)
        x = norm_silu_conv(x, None, self.norm_out, self.conv_out, cache)
        return x.add_(self.conv_out.bias.view(-1, 1, 1, 1))


class Decoder(nn.Module):
    """A latent frame ``[b z 1 h w]`` to a chunk of patches ``[b c t 8h 8w]``: 1 frame at first, then 4."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        widths = [base * multiple for multiple in (config.dim_mult[-1], *reversed(config.dim_mult))]
        temporal = tuple(reversed(config.temperal_downsample))
        self.conv_in = CausalConv3d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        # Wan 2.1's upsampling halves the channels, so each level after the first takes in half the last one's width.
        block_class, halving = (ResidualUpBlock, 1) if config.is_residual else (UpBlock, 2)
        blocks: list[nn.Module] = []
        for level, (in_channels, out_channels) in enumerate(pairwise(widths)):
            last = level == len(config.dim_mult) - 1
            upsample = None if last else Upsample(out_channels, out_channels // halving, temporal[level])
            in_channels = in_channels if level == 0 else in_channels // halving
            blocks.append(block_class(in_channels, out_channels, config.num_res_blocks + 1, upsample))
        self.up_blocks = nn.ModuleList(blocks)
        self.norm_out = ChannelRMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        x = self.conv_in(x, cache)
        x = self.mid_block(x, cache)
        for block in self.up_blocks:
            x = block(x, cache)
        x = norm_silu_conv(x, None, self.norm_out, self.conv_out, cache)
        return x.add_(self.conv_out.bias.view(-1, 1, 1, 1))


class AutoencoderKLWan(VideoAutoencoder):
    """The whole autoencoder; normalised latents are ``(raw - latents_mean) / latents_std``.

    With ``use_tiling`` pictures over 256 pixels a side go through in tiles of 256 pixels, to encode of 256 patches.
    """

    config_class: ClassVar[type[ModelConfig]] = WanVAEConfig
    config: WanVAEConfig

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.spatial_factor, self.temporal_factor = config.scale_factor_spatial, config.scale_factor_temporal
        self.out_channels = config.out_channels // config.patch**2
        patch, factor = config.patch, config.scale_factor_spatial
        self._encode_grids = _grid(1), _grid(factor // patch)
        self._decode_grids = _grid(factor), _grid(patch)
        self.requires_grad_(False)
        use_channels_last(self)

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents ``[b c t h w]`` to the DiT's, in float32."""
        mean, std = self._statistics(raw.device)
        return (raw.float() - mean) / std

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The DiT's latents ``[b c t h w]`` to raw ones, in float32."""
        mean, std = self._statistics(latents.device)
        return latents.float() * std + mean

    def encode_moments(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior's mean and log-variance, raw, each ``[b z k+1 h/s w/s]``; see ``encode``."""
        self.check_video(video)
        in_tiles = self.use_tiling and self._encode_grids[0].exceeded_by(video)
        video = patchify(video.to(self.quant_conv.weight.dtype), self.config.patch)
        moments = process_tiles(video, self._encode_tile, *self._encode_grids) if in_tiles else self._encode_tile(video)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode_stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """``decode`` a chunk at a time: pixels ``[b 3 1 s*h s*w]`` once, then ``[b 3 4 s*h s*w]`` per latent frame.

        With tiling all chunks come at the end, since tiles are decoded one after the other.
        """
        raw = self.denormalize(latents).to(self.post_quant_conv.weight.dtype)
        if not (self.use_tiling and self._decode_grids[0].exceeded_by(raw)):
            for chunk in self._decode_chunks(raw):
                yield unpatchify(chunk, self.config.patch)
            return
        video = unpatchify(process_tiles(raw, self._decode_tile, *self._decode_grids), self.config.patch)
        yield video[:, :, :1]
        if video.shape[2] > 1:
            yield from video[:, :, 1:].split(self.config.scale_factor_temporal, dim=2)

    def _encode_tile(self, video: torch.Tensor) -> torch.Tensor:
        video = video.contiguous(memory_format=torch.channels_last_3d)
        cache = FrameCache()
        moments = []
        chunk_sizes = [1] + [self.config.scale_factor_temporal] * (video.shape[2] // self.config.scale_factor_temporal)
        for chunk in video.split(chunk_sizes, dim=2):
            moments.append(self.encoder(chunk, cache))
            cache.end_chunk()
        return self.quant_conv(torch.cat(moments, dim=2))

    def _decode_tile(self, raw: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(self._decode_chunks(raw)), dim=2)

    def _decode_chunks(self, raw: torch.Tensor) -> Iterator[torch.Tensor]:
        bands = split_rows(raw.shape[-2])
        x = self.post_quant_conv(bands.take(raw).contiguous(memory_format=torch.channels_last_3d))
        cache = FrameCache()
        for latent_frame in x.split(1, dim=2):
            with use_bands(bands):
                chunk = self.decoder(latent_frame, cache)
            yield bands.gather(chunk, dim=-2)
            cache.end_chunk()

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = torch.tensor([self.config.latents_mean, self.config.latents_std], device=device)
        mean, std = statistics.view(2, 1, -1, 1, 1, 1)
        return mean, std


def _grid(factor: int) -> TileGrid:
    return TileGrid(tile=_TILE // factor, stride=_TILE_STRIDE // factor)
