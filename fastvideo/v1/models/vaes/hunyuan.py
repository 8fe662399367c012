"""The causal video autoencoder of HunyuanVideo (arXiv 2412.03603, section 4.1).

Legend: ``b`` batch, ``c`` channels (``i`` in, ``o`` out), ``t`` frames (pixel or latent), ``h w`` rows and columns. A
video of ``4k+1`` pixel frames has ``k+1`` latent frames. Parameters are named as in diffusers'
``AutoencoderKLHunyuanVideo``, the reference, less the wrapper around each convolution. Feature maps are channels-last
throughout.

Group norms and attention look at all frames of their input, so no cache makes a stream of chunks equal to the whole:
long videos go through in spans of 17 frames whose seams are blended, as in the reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fastvideo.v1.models.base import ModelConfig
from fastvideo.v1.models.vaes.base import VideoAutoencoder
from fastvideo.v1.models.vaes.channels_last import add_bias_residual, convolve, use_channels_last
from fastvideo.v1.models.vaes.row_bands import get_bands, split_rows, use_bands
from fastvideo.v1.models.vaes.tiling import TileGrid, process_spans, process_tiles

# Tiles of 256 pixels every 192, spans of 16 frames every 12, as diffusers has them.
_TILE_PIXELS, _TILE_STRIDE_PIXELS = 256, 192
_SPAN_FRAMES, _SPAN_STRIDE_FRAMES = 16, 12

Scale = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class HunyuanVAEConfig(ModelConfig):
    """``vae/config.json``; the defaults are those of the published checkpoint."""

    unread_keys: ClassVar[tuple[str, ...]] = ("down_block_types", "up_block_types")  # one kind for each level

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.476986
    spatial_compression_ratio: int = 8
    temporal_compression_ratio: int = 4

    def __post_init__(self) -> None:
        if self.act_fn != "silu" or not self.mid_block_add_attention:
            raise ValueError(
                f"act_fn={self.act_fn!r}, mid_block_add_attention={self.mid_block_add_attention} is not supported; "
                "published HunyuanVideo VAEs have 'silu' and true"
            )
        time, rows, _ = (prod(sizes) for sizes in zip(*self.level_scales(), strict=True))
        if (time, rows) != (self.temporal_compression_ratio, self.spatial_compression_ratio):
            raise ValueError(
                f"temporal_compression_ratio={self.temporal_compression_ratio}, "
                f"spatial_compression_ratio={self.spatial_compression_ratio} do not fit "
                f"{len(self.block_out_channels)} levels, which give {time} and {rows}; published VAEs have 4 and 8"
            )

    def level_scales(self) -> list[Scale]:
        """By how much each level's resampling changes frames, rows and columns; both ways, in forward order.

        Rows and columns change at the first levels, frames at the two before the last.
        """
        last = len(self.block_out_channels) - 1
        num_spatial = self.spatial_compression_ratio.bit_length() - 1
        space = [2 if level < num_spatial else 1 for level in range(last + 1)]
        return [(2 if last - 2 <= level < last else 1, space[level], space[level]) for level in range(last + 1)]


class GroupNorm(nn.GroupNorm):
    """A group norm over all frames and pixels: ``[b c t h w] -> [b c t h w]``, the result in float32."""

    def __init__(self, num_groups: int, num_channels: int) -> None:
        super().__init__(num_groups, num_channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Contiguous, because PyTorch's channels-last kernel for CPUs adds up in float32 number after number: over a
        # large map its result is 500 times less exact.
        x = x.float().contiguous()
        if get_bands().group.size > 1:
            scale, shift = self.linear_map(x, None).view(len(x), 2, -1, 1, 1, 1).unbind(1)
            return x * scale + shift
        return F.group_norm(x, self.num_groups, self.weight.float(), self.bias.float(), self.eps)

    def linear_map(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Factors and summands ``[b 2 c]`` that make the norm of ``x + bias`` out of ``x``, over all bands of rows."""
        if _has_kernels(x):
            from fastvideo.v1.layers.kernels import group_norm

            if get_bands().group.size == 1:
                return group_norm.group_affine(x, bias, self.weight, self.bias, self.num_groups, self.eps)
            means, variances = group_norm.channel_moments(x)
        else:
            variances, means = torch.var_mean(x.float().contiguous(), (2, 3, 4), correction=0)
        added = 0.0 if bias is None else bias.float()
        mean, variance = get_bands().group_moments(means + added, variances, self.num_groups)
        mean, scale = (
            y.repeat_interleave(x.shape[1] // self.num_groups, 1) for y in (mean, (variance + self.eps).rsqrt())
        )
        scale = scale * self.weight.float()
        return torch.stack((scale, self.bias.float() + (added - mean) * scale), dim=1)


class ReplicateConv3d(nn.Conv3d):
    """A 3x3x3 convolution that sees no later frame: ``[b i t h w] -> [b o t h w]``, or another size.

    The first frame stands for the two before it, a picture's border for what is beyond. ``stride`` divides frames, rows
    and columns, ``enlarge`` multiplies them before the convolution; the first frame stays single either way.
    """

    bias: nn.Parameter

    def __init__(
        self, in_channels: int, out_channels: int, stride: Scale = (1, 1, 1), enlarge: Scale = (1, 1, 1)
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride)
        self.enlarge = enlarge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(self, replicate(x, self.enlarge), self.bias)


def replicate(x: torch.Tensor, scale: Scale = (1, 1, 1), affine: torch.Tensor | None = None) -> torch.Tensor:
    """What a ``ReplicateConv3d`` reads: ``x`` enlarged to its nearest neighbours, with its margins.

    ``[b c t h w] -> [b c 2+T 2+Sh 2+Sw]``; twice the frames means ``T = 2t-1``: the first stays single. ``affine``
    (``GroupNorm.linear_map``), where there are kernels, is applied in passing, with a SiLU after it. Between bands of
    rows a margin is the neighbour's row.
    """
    if _has_kernels(x):
        from fastvideo.v1.layers.kernels import group_norm

        return get_bands().fill_margins(group_norm.replicate(x, scale, affine))
    assert affine is None, "only the kernels apply an affine map in passing"
    frames = torch.arange(-2, scale[0] * (x.shape[2] - 1) + 1, device=x.device).clamp_(0).add_(scale[0] - 1) // scale[0]
    rows, columns = (
        torch.arange(-1, factor * size + 1, device=x.device).clamp_(0, factor * size - 1) // factor
        for factor, size in zip(scale[1:], x.shape[3:], strict=True)
    )
    padded = x.movedim(1, -1)[:, frames[:, None, None], rows[:, None], columns].movedim(-1, 1)
    return get_bands().fill_margins(padded)


def norm_silu_conv(x: torch.Tensor, bias: torch.Tensor | None, norm: GroupNorm, conv: ReplicateConv3d) -> torch.Tensor:
    """``conv(silu(norm(x + bias)))`` without ``conv``'s own bias."""
    if _has_kernels(x):
        return convolve(conv, replicate(x, affine=norm.linear_map(x, bias)), None)
    y = norm(x if bias is None else x.float() + bias.view(-1, 1, 1, 1))
    y = F.silu(y, inplace=True).to(x.dtype, memory_format=torch.channels_last_3d)
    return convolve(conv, replicate(y), None)


def _has_kernels(x: torch.Tensor) -> bool:
    return x.is_cuda and x.is_contiguous(memory_format=torch.channels_last_3d)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut: ``[b i t h w] -> [b o t h w]``."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(num_groups, in_channels)
        self.conv1 = ReplicateConv3d(in_channels, out_channels)
        self.norm2 = GroupNorm(num_groups, out_channels)
        self.conv2 = ReplicateConv3d(out_channels, out_channels)
        self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = norm_silu_conv(x, None, self.norm1, self.conv1)
        y = norm_silu_conv(y, self.conv1.bias, self.norm2, self.conv2)
        return add_bias_residual(y, self.conv2.bias, x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention of one head; a pixel sees its own frame and those before: ``[b c t h w] -> [b c t h w]``."""

    def __init__(self, num_channels: int, num_groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(num_groups, num_channels)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(num_channels, num_channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, _, t, h, w = x.shape
        tokens = rearrange(self.group_norm(x).to(x.dtype), "b c t h w -> b 1 (t h w) c")
        query, key, value = self.to_q(tokens), *self._keys_and_values(tokens, t)
        # Frame by frame instead of a mask: nothing of the size of tokens x tokens, and no work on what it would hide.
        seen = key.shape[2] // t
        attended = [
            F.scaled_dot_product_attention(rows, key[:, :, : seen * frame], value[:, :, : seen * frame])
            for frame, rows in enumerate(query.split(h * w, dim=2), start=1)
        ]
        tokens = self.to_out(torch.cat(attended, dim=2))
        return x + rearrange(tokens, "b 1 (t h w) c -> b c t h w", t=t, h=h, w=w)

    def _keys_and_values(self, tokens: torch.Tensor, num_frames: int) -> list[torch.Tensor]:
        """Those of whole frames, each ``[b 1 s c]``, whichever band of rows the tokens are of."""
        parts = (layer(tokens).unflatten(2, (num_frames, -1)) for layer in (self.to_k, self.to_v))
        return [get_bands().gather(part, dim=3).flatten(2, 3) for part in parts]


class MidBlock(nn.Module):
    """Residual, attention, residual, at the lowest resolution: ``[b c t h w] -> [b c t h w]``."""

    def __init__(self, num_channels: int, num_groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(num_channels, num_groups)])
        self.resnets = nn.ModuleList([ResidualBlock(num_channels, num_channels, num_groups) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)


class Level(nn.Module):
    """Residual blocks, then a resampling unless this level has none: ``[b i t h w] -> [b o t' h' w']``."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, num_groups: int, resample: ReplicateConv3d | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.resnets = nn.ModuleList([ResidualBlock(i, o, num_groups) for i, o in pairwise(widths)])
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resnets:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class Encoder(nn.Module):
    """Pixels ``[b 3 4k+1 8h 8w]`` to moments ``[b 2*z k+1 h w]``."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        channels, num_groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = ReplicateConv3d(config.in_channels, channels[0])
        self.down_blocks = nn.ModuleList()
        for (i, o), scale in zip(pairwise((channels[0], *channels)), config.level_scales(), strict=True):
            resample = ReplicateConv3d(o, o, stride=scale) if max(scale) > 1 else None
            self.down_blocks.append(Level(i, o, config.layers_per_block, num_groups, resample))
        self.mid_block = MidBlock(channels[-1], num_groups)
        self.conv_norm_out = GroupNorm(num_groups, channels[-1])
        self.conv_out = ReplicateConv3d(channels[-1], 2 * config.latent_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        x = norm_silu_conv(x, None, self.conv_norm_out, self.conv_out)
        return x.add_(self.conv_out.bias.view(-1, 1, 1, 1))


class Decoder(nn.Module):
    """Latents ``[b z k+1 h w]`` to pixels ``[b 3 4k+1 8h 8w]``."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        channels, num_groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = ReplicateConv3d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], num_groups)
        self.up_blocks = nn.ModuleList()
        for (i, o), scale in zip(pairwise((channels[0], *channels)), config.level_scales(), strict=True):
            resample = ReplicateConv3d(o, o, enlarge=scale) if max(scale) > 1 else None
            self.up_blocks.append(Level(i, o, config.layers_per_block + 1, num_groups, resample))
        self.conv_norm_out = GroupNorm(num_groups, channels[-1])
        self.conv_out = ReplicateConv3d(channels[-1], config.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        x = norm_silu_conv(x, None, self.conv_norm_out, self.conv_out)
        return x.add_(self.conv_out.bias.view(-1, 1, 1, 1))


class AutoencoderKLHunyuanVideo(VideoAutoencoder):
    """The whole autoencoder; normalised latents are ``raw * scaling_factor``.

    More than 16 pixel frames always go through in spans of 17, as the reference has it whether or not tiling is on: a
    whole video is what this model was not meant to see at once. With ``use_tiling`` pictures over 256 pixels a side go
    through in tiles too.
    """

    config_class: ClassVar[type[ModelConfig]] = HunyuanVAEConfig
    renamed_keys: ClassVar[dict[str, str]] = {
        ".downsamplers.0.conv.conv.": ".resample.",
        ".upsamplers.0.conv.conv.": ".resample.",
        ".conv.": ".",
        ".to_out.0.": ".to_out.",
    }
    config: HunyuanVAEConfig

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)
        self.spatial_factor = space = config.spatial_compression_ratio
        self.temporal_factor = time = config.temporal_compression_ratio
        self.out_channels = config.out_channels
        self._pixel_tiles = TileGrid(tile=_TILE_PIXELS, stride=_TILE_STRIDE_PIXELS)
        self._latent_tiles = TileGrid(tile=_TILE_PIXELS // space, stride=_TILE_STRIDE_PIXELS // space)
        self._pixel_spans = TileGrid(tile=_SPAN_FRAMES, stride=_SPAN_STRIDE_FRAMES)
        self._latent_spans = TileGrid(tile=_SPAN_FRAMES // time, stride=_SPAN_STRIDE_FRAMES // time)
        self.requires_grad_(False)
        use_channels_last(self)

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents ``[b z t h w]`` to the DiT's, in float32."""
        return raw.float() * self.config.scaling_factor

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The DiT's latents ``[b z t h w]`` to raw ones, in float32."""
        return latents.float() / self.config.scaling_factor

    def encode_moments(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior's mean and log-variance, raw, each ``[b z k+1 h/8 w/8]``; see ``encode``."""
        self.check_video(video)
        spans = process_spans(video, self._encode_span, self._pixel_spans, self._latent_spans)
        mean, logvar = torch.cat(list(spans), dim=2).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode_stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """``decode`` a span at a time: pixels ``[b 3 13 8h 8w]`` at first, then 12 frames each, fewer at the end."""
        raw = self.denormalize(latents).to(self.post_quant_conv.weight.dtype)
        yield from process_spans(raw, self._decode_span, self._latent_spans, self._pixel_spans)

    def _encode_span(self, video: torch.Tensor) -> torch.Tensor:
        video = video.to(self.quant_conv.weight.dtype)
        if self.use_tiling and self._pixel_tiles.exceeded_by(video):
            return process_tiles(video, self._encode_tile, self._pixel_tiles, self._latent_tiles)
        return self._encode_tile(video)

    def _decode_span(self, raw: torch.Tensor) -> torch.Tensor:
        if self.use_tiling and self._latent_tiles.exceeded_by(raw):
            return process_tiles(raw, self._decode_tile, self._latent_tiles, self._pixel_tiles)
        return self._decode_tile(raw)

    def _encode_tile(self, video: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder(video.contiguous(memory_format=torch.channels_last_3d)))

    def _decode_tile(self, raw: torch.Tensor) -> torch.Tensor:
        bands = split_rows(raw.shape[-2])
        band = bands.take(raw).contiguous(memory_format=torch.channels_last_3d)
        with use_bands(bands):
            video = self.decoder(self.post_quant_conv(band))
        return bands.gather(video, dim=-2)
