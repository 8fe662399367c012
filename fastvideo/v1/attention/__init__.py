"""Attention layers that choose their backend."""

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.attention.layer import DistributedAttention, LocalAttention
from fastvideo.v1.attention.patterns import AttentionPattern, GlobalLocal, Temporal

__all__ = [
    "AttentionBackend",
    "AttentionPattern",
    "DistributedAttention",
    "GlobalLocal",
    "LocalAttention",
    "Temporal",
    "_Backend",
]
