"""Which keys a query sees, where that is not all of them: those of other frames, or those near by and a few for all.

Legend: ``b`` batch, ``s`` tokens, ``t`` frames, ``p`` positions of a frame, ``n`` heads, ``d`` head size.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange

from fastvideo.v1.attention.backends.abstract import AttentionBackend

QUERIES = 1024  # at a time, where a mask is needed: memory grows with the window, not with the square of the tokens


class AttentionPattern(ABC):
    """Restricts self-attention among the tokens of a whole sequence; a layer takes one at each call."""

    @abstractmethod
    def attend(
        self, backend: AttentionBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """``[b, s, n, d]`` each to ``[b, s, n, d]``; ``backend`` does what is dense."""


@dataclass(frozen=True)
class Temporal(AttentionPattern):
    """A token sees those at its own position in all ``num_frames`` frames; tokens lie frame by frame.

    Raises ``ValueError`` for a number of tokens that frames do not divide.
    """

    num_frames: int

    def attend(
        self, backend: AttentionBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if query.shape[1] % self.num_frames:
            raise ValueError(f"num_frames={self.num_frames} must divide the {query.shape[1]} tokens of a sequence")
        positions = (rearrange(x, "b (t p) n d -> (b p) t n d", t=self.num_frames) for x in (query, key, value))
        return rearrange(backend.forward(*positions), "(b p) t n d -> b (t p) n d", b=len(query))


@dataclass(frozen=True)
class GlobalLocal(AttentionPattern):
    """The first ``num_global`` tokens see all and are seen by all; of the rest, each sees ``window`` on either side."""

    num_global: int
    window: int

    def attend(
        self, backend: AttentionBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        first, num_tokens = self.num_global, query.shape[1]
        parts = [backend.forward(query[:, :first], key, value)] if first else []
        for start in range(first, num_tokens, QUERIES):
            end = min(start + QUERIES, num_tokens)
            low, high = max(start - self.window, first), min(end + self.window, num_tokens)
            near_key, near_value = (
                torch.cat((x[:, :first], x[:, low:high]), dim=1).transpose(1, 2) for x in (key, value)
            )
            mask = _window_mask(first, self.window, start - low, end - start, high - low, query.device)
            part = query[:, start:end].transpose(1, 2)
            out = F.scaled_dot_product_attention(
                part, near_key, near_value, attn_mask=mask, scale=backend.softmax_scale
            )
            parts.append(out.transpose(1, 2))
        return torch.cat(parts, dim=1)


@lru_cache(maxsize=16)
def _window_mask(
    num_global: int, window: int, offset: int, num_queries: int, num_keys: int, device: torch.device
) -> torch.Tensor:
    """``[q, g + k]`` bool, True where seen; the first query is ``offset`` keys after the first of the window's."""
    query = torch.arange(num_queries, device=device)[:, None] + offset
    key = torch.arange(num_keys, device=device)[None]
    return F.pad((query - key).abs() <= window, (num_global, 0), value=True)
