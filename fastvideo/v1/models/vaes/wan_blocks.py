"""What the video autoencoders of Wan 2.1 and Wan 2.2 are built of (reference: diffusers ``autoencoder_kl_wan``).

Legend: ``b`` batch, ``c i o`` channels, of input, of output, ``t`` frames, ``h w`` rows and columns. Feature maps are
channels-last throughout: norms and attention read them as rows of channels without a copy, and cuDNN is faster on them.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from fastvideo.v1.models.vaes.causal_conv import CausalConv3d, FrameCache
from fastvideo.v1.models.vaes.channels_last import add_bias_residual, convolve
from fastvideo.v1.models.vaes.row_bands import get_bands


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
    cache.keep(conv, frames)
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
        b, c, t, h, w = x.shape
        tokens = rearrange(self.norm(x), "b c t h w -> (b t) (h w) c")
        qkv = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        query, keys_values = qkv.unsqueeze(1).split((c, 2 * c), dim=-1)
        key, value = get_bands().gather(keys_values, dim=2).chunk(2, dim=-1)
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
    """Twice the rows and columns, with ``temporal`` twice the frames: ``[b i t h w] -> [b o 2t 2h 2w]``.

    The first frame stays single and is no past for the others: the convolution over time starts at the second chunk.
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        # The enlargement itself is done in forward, together with the frames'; the name of the convolution stays.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.time_conv = CausalConv3d(in_channels, 2 * in_channels, (3, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:
        b, factor = x.shape[0], 1
        if self.time_conv is not None and not cache.first_chunk:
            x, factor = self.time_conv(x, cache), 2
        # One copy interleaves the two halves of the channels as frames and repeats rows and columns.
        x = repeat(x, "b (f c) t h w -> (b t f) (h p) (w q) c", f=factor, p=2, q=2).movedim(-1, 1)
        conv = self.resample[1]
        assert isinstance(conv, nn.Conv2d)
        x = convolve(conv, x, conv.bias)
        return rearrange(x, "(b t) c h w -> b c t h w", b=b)
