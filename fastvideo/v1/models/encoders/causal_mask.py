"""Who sees whom in a decoder-style text encoder."""

import torch


def causal_mask(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Bool ``[b or 1, 1, s, s]``, queries by keys, for token ids ``[b, s]``.

    A token sees itself and those before it, without those that ``attention_mask`` ``[b, s]`` calls padding (0).
    """
    s = input_ids.shape[1]
    visible = torch.ones(1, 1, s, s, dtype=torch.bool, device=input_ids.device).tril()
    return visible if attention_mask is None else visible & attention_mask.bool()[:, None, None, :]
