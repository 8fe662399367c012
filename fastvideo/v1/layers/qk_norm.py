"""Queries and keys between their projection and attention: normalised, then rotated.

Legend: ``b`` batch, ``s`` tokens, ``n`` heads, ``h`` head size, ``d = n h``.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.layers.rotary import RotaryTables, apply_rotary
from fastvideo.v1.layers.weight_loading import copy_exactly


class QKNormRotary(nn.Module):
    """RMS norm of queries and of keys over the full width, then rotary embedding; one Triton kernel on a GPU.

    The checkpoint's two weights are the two rows of ours.
    """

    def __init__(self, width: int, head_size: int, eps: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2, width), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        copy_exactly(param.data[part], loaded)

    def forward(self, qkv: torch.Tensor, rotary: RotaryTables) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Packed ``[b, s, 3 d]`` to queries, keys and values ``[b, s, n, h]``; the values are a view."""
        query, key, value = qkv.chunk(3, dim=-1)
        if qkv.is_cuda:
            from fastvideo.v1.layers.kernels.qk_norm import qk_norm_rotary

            query, key = qk_norm_rotary(qkv, self.weight, *rotary, self.head_size, self.eps)
            query, key = (x.unflatten(-1, (-1, self.head_size)) for x in (query, key))
        else:
            query, key = (
                apply_rotary(self._norm(x, part).unflatten(-1, (-1, self.head_size)), rotary)
                for part, x in enumerate((query, key))
            )
        return query, key, value.unflatten(-1, (-1, self.head_size))

    def _norm(self, x: torch.Tensor, part: int) -> torch.Tensor:
        return (F.rms_norm(x.float(), x.shape[-1:], eps=self.eps) * self.weight[part]).to(x.dtype)
