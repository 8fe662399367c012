"""What Wan 2.2's autoencoder adds to Wan 2.1's: pixels in patches, and a shortcut without weights around each level.

Legend: ``b`` batch, ``c i o`` channels, of input, of output, ``t`` frames, ``h w`` rows and columns. A shortcut folds
frames (``f``), rows (``p``) and columns (``q``) into channels on the way down and unfolds them on the way up. Where the
channels are too many for the next level, neighbours are averaged; where too few, repeated (DC-AE, arXiv 2410.10733).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from fastvideo.v1.models.vaes.causal_conv import FrameCache
from fastvideo.v1.models.vaes.wan_blocks import Downsample, ResidualBlock, Upsample


def patchify(video: torch.Tensor, size: int) -> torch.Tensor:
    """Squares of ``size`` pixels as channels: ``[b c t h w] -> [b (c q p) t h/size w/size]``."""
    return rearrange(video, "b c t (h p) (w q) -> b (c q p) t h w", p=size, q=size)


def unpatchify(video: torch.Tensor, size: int) -> torch.Tensor:
    """The way back: ``[b (c q p) t h w] -> [b c t size*h size*w]``."""
    return rearrange(video, "b (c q p) t h w -> b c t (h p) (w q)", p=size, q=size)


def average_down(x: torch.Tensor, out_channels: int, temporal: int, spatial: int) -> torch.Tensor:
    """Folds, then averages neighbouring channels: ``[b i t h w] -> [b out_channels t/temporal h/spatial w/spatial]``.

    A single first frame counts as the last of ``temporal``, after zeros.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % temporal, 0))
    x = rearrange(x, "b c (t f) (h p) (w q) -> b t h w (c f p q)", f=temporal, p=spatial, q=spatial)
    return x.unflatten(-1, (out_channels, -1)).mean(-1).movedim(-1, 1)


def duplicate_up(x: torch.Tensor, out_channels: int, temporal: int, spatial: int, first_chunk: bool) -> torch.Tensor:
    """Repeats channels, then unfolds: ``[b i t h w] -> [b out_channels temporal*t spatial*h spatial*w]``.

    Of the first chunk only the last frame is kept. One copy does it all: what the channels do not hold is repeated.
    """
    unfolded, repeated, held = [], [], x.shape[1] // out_channels
    for factor in (temporal, spatial, spatial):
        unfolded.append(math.gcd(held, factor))
        repeated.append(factor // unfolded[-1])
        held //= unfolded[-1]
    (f, p, q), (g, r, s) = unfolded, repeated
    pattern = "b (o f p q) t h w -> b (t f g) (h p r) (w q s) o"
    x = repeat(x, pattern, f=f, p=p, q=q, g=g, r=r, s=s).movedim(-1, 1)
    return x[:, :, temporal - 1 :] if first_chunk else x


class ResidualDownBlock(nn.Module):
    """Residual blocks and a downsampling (not in the last level), beside the averaging shortcut:
    ``[b i t h w] -> [b o t/2 h/2 w/2]``.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, downsampler: Downsample | None) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.resnets = nn.ModuleList([ResidualBlock(i, o) for i, o in pairwise(widths)])
        self.downsampler = downsampler
        self.out_channels = out_channels
        self.spatial = 1 if downsampler is None else 2
        self.temporal = 1 if downsampler is None or downsampler.time_conv is None else 2

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        shortcut = average_down(x, self.out_channels, self.temporal, self.spatial)
        for resnet in self.resnets:
            x = resnet(x, cache)
        if self.downsampler is not None:
            x = self.downsampler(x, cache)
        return shortcut.add_(x)


class ResidualUpBlock(nn.Module):
    """Residual blocks and an upsampling beside the duplicating shortcut: ``[b i t h w] -> [b o 2t 2h 2w]``.

    The last level has neither upsampling nor shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, upsampler: Upsample | None) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.resnets = nn.ModuleList([ResidualBlock(i, o) for i, o in pairwise(widths)])
        self.upsampler = upsampler
        self.out_channels = out_channels
        self.temporal = 1 if upsampler is None or upsampler.time_conv is None else 2

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        start = x
        for resnet in self.resnets:
            x = resnet(x, cache)
        if self.upsampler is None:
            return x
        x = self.upsampler(x, cache)
        return x.add_(duplicate_up(start, self.out_channels, self.temporal, 2, cache.first_chunk))
