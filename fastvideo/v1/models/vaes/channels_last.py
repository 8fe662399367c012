"""Convolution maps whose channels lie innermost: norms read them as rows without a copy, cuDNN is faster on them.

Legend: ``b`` batch, ``c o`` channels in and out, ``t`` frames, ``h w`` rows and columns.
"""

import torch
from torch import nn

from fastvideo.v1.models.vaes.row_bands import get_bands


def use_channels_last(model: nn.Module) -> None:
    """Stores the convolutions' weights in the feature maps' layout, which copies into them keep."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def convolve(conv: nn.Conv2d | nn.Conv3d, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``conv`` of ``x``, with ``bias`` in place of its own: without one the caller adds it, in passing, elsewhere.

    Of a band of rows the neighbours' rows stand in for the padding.
    """
    padding = tuple(int(size) for size in conv.padding)
    bands = get_bands()
    if bands.group.size > 1 and padding[-2]:
        assert padding[-2] == 1, f"padding={padding}: only a neighbour's next row is asked for"
        x, padding = bands.with_neighbours(x), (*padding[:-2], 0, padding[-1])
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # Left to choose, PyTorch sends small float32 videos to a kernel that is 2 to 8 times slower.
        return torch.ops.aten.mkldnn_convolution(x, conv.weight, bias, padding, conv.stride, conv.dilation, conv.groups)
    no_output_padding = (0,) * len(padding)
    return torch.convolution(
        x, conv.weight, bias, conv.stride, padding, conv.dilation, False, no_output_padding, conv.groups
    )


def add_bias_residual(x: torch.Tensor, bias: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x + bias + y``, rounded once; all ``[b c t h w]`` but ``bias``, which is ``[c]``. ``x`` may be overwritten."""
    if x.is_cuda and all(z.is_contiguous(memory_format=torch.channels_last_3d) for z in (x, y)):
        from fastvideo.v1.layers.kernels import channel_norm

        return channel_norm.add_bias_residual(x, bias, y)
    return x.copy_((x.float() + bias.view(-1, 1, 1, 1)).add_(y))
