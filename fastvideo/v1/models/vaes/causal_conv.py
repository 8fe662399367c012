"""Convolutions that see the present and the past, fed a few frames at a time.

Legend: ``b`` batch, ``c`` channels, ``t`` frames, ``h w`` pixels of a feature map. A video goes through in chunks; what
a convolution needs of the chunks before lies in a ``FrameCache``, so the result is that of the whole video at once.
"""

import torch
from torch import nn

from fastvideo.v1.models.vaes.channels_last import convolve


class FrameCache:
    """The last input frames of every causal convolution, from one chunk of a video to the next.

    One cache serves one pass of one video through one encoder or decoder. Layers that treat the first chunk (a single
    frame) in their own way ask ``first_chunk``; whoever feeds the chunks calls ``end_chunk`` after each.
    """

    def __init__(self) -> None:
        self.first_chunk = True
        self._past: dict[nn.Module, torch.Tensor] = {}

    def window(self, conv: "CausalConv3d", shape: torch.Size, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``conv`` is to read: ``[b c num_past+t h w]`` for new frames of ``shape``, and the view they are
        written to.

        The frames of the past are in place, zeros where there were none. The caller fills the view, then lets the
        cache ``keep`` the window.
        """
        b, c, t, h, w = shape
        frames = like.new_empty(b, conv.num_past + t, h, w, c).movedim(-1, 1)
        past = self._past.pop(conv, None)
        if past is None:
            frames[:, :, : conv.num_past].zero_()
        else:
            frames[:, :, : conv.num_past].copy_(past)
        return frames, frames[:, :, conv.num_past :]

    def keep(self, conv: "CausalConv3d", x: torch.Tensor) -> None:
        """Makes the last frames of ``x`` the past of ``conv``: a copy, since a view would hold all of ``x``."""
        self._past[conv] = x[:, :, -conv.num_past :].clone()

    def end_chunk(self) -> None:
        self.first_chunk = False


class CausalConv3d(nn.Conv3d):
    """A 3D convolution of odd spatial kernel whose frames see no later frame: ``[b c t h w] -> [b o t/stride h w]``.

    ``num_past`` frames are put in front of each chunk; by default the kernel's length less one, which keeps the length.
    """

    bias: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
        num_past: int | None = None,
    ) -> None:
        padding = (0, kernel_size[1] // 2, kernel_size[2] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.num_past = kernel_size[0] - 1 if num_past is None else num_past

    def forward(self, x: torch.Tensor, cache: FrameCache) -> torch.Tensor:  # type: ignore[override]
        frames, new = cache.window(self, x.shape, x)
        new.copy_(x)
        cache.keep(self, frames)
        return convolve(self, frames, self.bias)
