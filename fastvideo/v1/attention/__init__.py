"""Attention layers that choose their backend."""

from fastvideo.v1.attention.backends.abstract import AttentionBackend, _Backend
from fastvideo.v1.attention.layer import DistributedAttention, LocalAttention

__all__ = ["AttentionBackend", "DistributedAttention", "LocalAttention", "_Backend"]
