"""The causal video autoencoder of Wan 2.1 (arXiv 2503.20314, section 4.1).

Legend: ``b`` batch, ``c`` channels, ``t`` frames (pixel or latent), ``h w`` rows and columns. A video of ``4k+1`` pixel
frames has ``k+1`` latent frames: the first frame is a chunk of its own, each later chunk is four pixel frames or one
latent frame. Parameters are named as in diffusers' ``AutoencoderKLWan``, the reference. Feature maps are channels-last
throughout: norms and attention read them as rows of channels without a copy, and cuDNN is faster on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from fastvideo.v1.models.base import ModelConfig
from fastvideo.v1.models.vaes.base import VideoAutoencoder
from fastvideo.v1.models.vaes.causal_conv import CausalConv3d, FrameCache
from fastvideo.v1.models.vaes.channels_last import add_bias_residual, convolve, use_channels_last
from fastvideo.v1.models.vaes.tiling import TileGrid, process_tiles

# Tiles of 256 pixels every 192, as diffusers has them.
_TILE_PIXELS = 256
_TILE_STRIDE_PIXELS = 192


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig(ModelConfig):
    """``vae/config.json``; the defaults are those that files written before a key existed rely on."""

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
        if self.is_residual or self.patch_size is not None:
            raise ValueError(
                f"is_residual={self.is_residual}, patch_size={self.patch_size}: this is the VAE of Wan 2.2, which is "
                "not supported; use a Wan 2.1 checkpoint (is_residual=false, patch_size=null)"
            )
        if self.attn_scales:
            raise ValueError(f"attn_scales={self.attn_scales} is not supported; published Wan 2.1 VAEs have []")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(
                f"latents_mean and latents_std have {len(self.latents_mean)} and {len(self.latents_std)} values; "
                f"both must have z_dim={self.z_dim}"
            )


class ChannelRMSNorm(nn.Module):
    """Root-mean-square norm over the channels: ``[b c t h w] -> [b c t h w]``; statistics in float32."""

    # F.normalize's floor of 1e-12 on the length, as a floor on the mean square: only keeps zeros from becoming NaN.
    EPS = 1e-24

    def __init__(self, num_channels: int, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(num_channels, *[1] * num_axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gamma = self.gamma.flatten()
        return F.rms_norm(x.movedim(1, -1), gamma.shape, gamma, self.EPS).movedim(-1, 1)


def norm_silu_conv(
    x: torch.Tensor, bias: torch.Tensor | None, norm: ChannelRMSNorm, conv: CausalConv3d, cache: FrameCache
) -> torch.Tensor:
    """``conv(silu(norm(x + bias)))`` without ``conv``'s own bias; the activation is written where ``conv`` reads."""
    frames, new = cache.window(conv, x.shape, x)
    if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d):
        from fastvideo.v1.layers.kernels.channel_norm import norm_silu

        norm_silu(x, bias, norm.gamma, new, norm.EPS)
    else:
        new.copy_(F.silu(norm(x if bias is None else x + bias.view(-1, 1, 1, 1)), inplace=True))
    return convolve(conv, frames, None)


class ResidualBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, beside a shortcut: ``[b i t h w] -> [b o t h w]``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = ChannelRMSNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        y = norm_silu_conv(x, None, self.norm1, self.conv1, cache)
        y = norm_silu_conv(y, self.conv1.bias, self.norm2, self.conv2, cache)
        return add_bias_residual(y, self.conv2.bias, x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention of one head among the pixels of each frame: ``[b c t h w] -> [b c t h w]``."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(num_channels, num_axes=2)
        self.to_qkv = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.proj = nn.Conv2d(num_channels, num_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, t, h, w = x.shape
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) (h w) c")
        qkv = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        query, key, value = qkv.unsqueeze(1).chunk(3, dim=-1)
        tokens = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        tokens = F.linear(tokens, self.proj.weight.flatten(1), self.proj.bias)
        return x + rearrange(tokens, "(b t) (h w) c -> b c t h w", b=b, t=t, h=h, w=w)


class MidBlock(nn.Module):
    """Residual, attention, residual, at the lowest resolution: ``[b c t h w] -> [b c t h w]``."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(num_channels)])
        self.resnets = nn.ModuleList([ResidualBlock(num_channels, num_channels) for _ in range(2)])

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        x = self.resnets[0](x, cache)
        x = self.attentions[0](x)
        return self.resnets[1](x, cache)


class Downsample(nn.Module):
    """Half the rows and columns, with ``temporal`` half the frames: ``[b c t h w] -> [b c t/2 h/2 w/2]``.

    The first frame is not merged with others: it passes, and is the past of the first pair.
    """

    def __init__(self, num_channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(num_channels, num_channels, 3, stride=2))
        self.time_conv = (
            CausalConv3d(num_channels, num_channels, (3, 1, 1), stride=(2, 1, 1), num_past=1) if temporal else None
        )

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        b = x.shape[0]
        x = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(x, "(b t) c h w -> b c t h w", b=b)
        if self.time_conv is None:
            return x
        if cache.first_chunk:
            cache.keep(self.time_conv, x)
            return x
        return self.time_conv(x, cache)


class Upsample(nn.Module):
    """Twice the rows and columns, with ``temporal`` twice the frames: ``[b c t h w] -> [b c/2 2t 2h 2w]``.

    The first frame stays single and is no past for the others: the convolution over time starts at the second chunk.
    """

    def __init__(self, num_channels: int, temporal: bool) -> None:
        super().__init__()
        # The enlargement itself is done in forward, together with the frames'; the name of the convolution stays.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(num_channels, num_channels // 2, 3, padding=1))
        self.time_conv = CausalConv3d(num_channels, 2 * num_channels, (3, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        b, factor = x.shape[0], 1
        if self.time_conv is not None and not cache.first_chunk:
            x, factor = self.time_conv(x, cache), 2
        # One copy interleaves the two halves of the channels as frames and repeats rows and columns.
        x = repeat(x, "b (f c) t h w -> (b t f) (h p) (w q) c", f=factor, p=2, q=2).movedim(-1, 1)
        return rearrange(self.resample(x), "(b t) c h w -> b c t h w", b=b)


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
    """A chunk of pixels ``[b 3 t h w]`` (1 frame, then 4 a chunk) to moments ``[b 2*z 1 h/8 w/8]``."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        layers: list[nn.Module] = []
        for level, (in_channels, out_channels) in enumerate(pairwise(widths)):
            layers.append(ResidualBlock(in_channels, out_channels))
            layers += [ResidualBlock(out_channels, out_channels) for _ in range(config.num_res_blocks - 1)]
            if level < len(config.dim_mult) - 1:
                layers.append(Downsample(out_channels, temporal=config.temperal_downsample[level]))
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
    """A latent frame ``[b z 1 h w]`` to a chunk of pixels ``[b 3 t 8h 8w]``: 1 frame at first, then 4."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        widths = [base * multiple for multiple in (config.dim_mult[-1], *reversed(config.dim_mult))]
        temporal = tuple(reversed(config.temperal_downsample))
        self.conv_in = CausalConv3d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        blocks: list[nn.Module] = []
        for level, (in_channels, out_channels) in enumerate(pairwise(widths)):
            last = level == len(config.dim_mult) - 1
            upsample = None if last else Upsample(out_channels, temporal=temporal[level])
            # An upsampling has halved the channels that come in.
            in_channels = in_channels if level == 0 else in_channels // 2
            blocks.append(UpBlock(in_channels, out_channels, config.num_res_blocks + 1, upsample))
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

    With ``use_tiling`` pictures over 256 pixels a side go through in tiles.
    """

    config_class: ClassVar[type[ModelConfig]] = WanVAEConfig
    config: WanVAEConfig

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.spatial_factor = factor = config.scale_factor_spatial
        self.temporal_factor = config.scale_factor_temporal
        self.out_channels = config.out_channels
        self._pixel_grid = TileGrid(tile=_TILE_PIXELS, stride=_TILE_STRIDE_PIXELS)
        self._latent_grid = TileGrid(tile=_TILE_PIXELS // factor, stride=_TILE_STRIDE_PIXELS // factor)
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
        """The posterior's mean and log-variance, raw, each ``[b z k+1 h/8 w/8]``; see ``encode``."""
        self.check_video(video)
        video = video.to(self.quant_conv.weight.dtype)
        if self.use_tiling and self._pixel_grid.exceeded_by(video):
            moments = process_tiles(video, self._encode_tile, self._pixel_grid, self._latent_grid)
        else:
            moments = self._encode_tile(video)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode_stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """``decode`` a chunk at a time: pixels ``[b 3 1 8h 8w]`` once, then ``[b 3 4 8h 8w]`` per latent frame.

        With tiling all chunks come at the end, since tiles are decoded one after the other.
        """
        raw = self.denormalize(latents).to(self.post_quant_conv.weight.dtype)
        if not (self.use_tiling and self._latent_grid.exceeded_by(raw)):
            for chunk in self._decode_chunks(raw):
                yield chunk.clamp_(-1.0, 1.0)
            return
        video = process_tiles(raw, self._decode_tile, self._latent_grid, self._pixel_grid).clamp_(-1.0, 1.0)
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
        x = self.post_quant_conv(raw.contiguous(memory_format=torch.channels_last_3d))
        cache = FrameCache()
        for latent_frame in x.split(1, dim=2):
            yield self.decoder(latent_frame, cache)
            cache.end_chunk()

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = torch.tensor([self.config.latents_mean, self.config.latents_std], device=device)
        mean, std = statistics.view(2, 1, -1, 1, 1, 1)
        return mean, std
