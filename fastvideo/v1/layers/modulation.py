"""Adaptive layer norm (DiT, arXiv 2212.09748): float32 inside, the input's dtype outside.

Shapes: ``x`` and ``y`` are ``[b, s, d]``; ``shift``, ``scale`` and ``gate`` are float32 ``[b, 1, d]``, or ``[b, s, d]``
where every token has its own timestep.
"""

import torch
import torch.nn.functional as F


def modulated_norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """``layer_norm(x) * (1 + scale) + shift``, the norm without weights of its own."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


def gated_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x + y * gate``."""
    return (x.float() + y.float() * gate).to(x.dtype)
