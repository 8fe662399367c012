"""Convolutions that see the present and the past, fed a few frames at a time.

Legend: ``b`` batch, ``c`` channels, ``t`` frames, ``h w`` pixels of a feature map. A video goes through in chunks; what
a convolution needs of the chunks before lies in a ``FrameCache``, so the result is that of the whole video at once.
"""

import torch
import torch.nn.functional as F
from torch import nn

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class FrameCache:
    """The last input frames of every causal convolution, from one chunk of a video to the next.

    One cache serves one pass of one video through one encoder or decoder. Layers that treat the first chunk (a single
    frame) in their own way ask ``first_chunk``; whoever feeds the chunks calls ``end_chunk`` after each.
    """

    def __init__(self) -> None:
        self.first_chunk = True
        self._past: dict[nn.Module, torch.Tensor] = {}

    def extend(self, conv: nn.Module, x: torch.Tensor, num_past: int) -> torch.Tensor:
        """``x`` behind the ``num_past`` input frames before it, zeros where there were none: ``[b c num_past+t h w]``.

        The last ``num_past`` frames of the result are kept for the next chunk.
        """
        past = self._past.get(conv)
        # Both keep the memory format; a concatenation with fresh zeros would not.
        x = F.pad(x, (0, 0, 0, 0, num_past, 0)) if past is None else torch.cat([past, x], dim=2)
        self.keep(conv, x, num_past)
        return x

    def keep(self, conv: nn.Module, x: torch.Tensor, num_past: int) -> None:
        """Keep the last ``num_past`` frames of ``x`` for the next chunk; copied, so that ``x`` itself can be freed."""
        self._past[conv] = x[:, :, -num_past:].clone()

    def end_chunk(self) -> None:
        self.first_chunk = False


class CausalConv3d(nn.Conv3d):
    """A 3D convolution of odd spatial kernel whose frames see no later frame: ``[b c t h w] -> [b o t/stride h w]``.

    ``num_past`` frames are put in front of each chunk; by default the kernel's length less one, which keeps the length.
    """

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
        x = cache.extend(self, x, self.num_past)
        if _prefers_onednn(x):
            return torch.ops.aten.mkldnn_convolution(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x)


def _prefers_onednn(x: torch.Tensor) -> bool:
    """Whether to name the kernel: PyTorch's own choice for small float32 videos on a CPU is 2 to 8 times slower."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _HAS_ONEDNN and not torch.compiler.is_compiling()
