"""Texts through an encoder, so that an embedding owes nothing to the texts beside it: equal text, equal bytes.

Legend: ``b`` texts, ``l`` tokens they are padded to, ``r`` rows and ``s`` tokens of one call.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_LENGTH_STEP = 16
_TOKENS_PER_CALL = 2048  # enough that a large encoder on a GPU computes rather than reads its weights


class TextBatch(NamedTuple):
    """One call of an encoder: ids and mask ``[r, s]``, of which the first rows are ``texts``, positions among all."""

    texts: list[int]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor


@dataclass(frozen=True)
class Tokens:
    """Token ids and their mask (0: padding, on the right), ``[b, l]`` each, on the CPU."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def batches(self, device: torch.device) -> Iterator[TextBatch]:
        """Calls that hold every text once.

        A matrix product of another shape may be another kernel, which adds in another order. So the shape of a call
        follows from a text's own length alone: padded to a multiple of 16 tokens, in as many rows as that length gets,
        the last call filled up with repeats. A GPU's kernels treat all rows of one shape alike, as measured: UMT5-XXL
        on an H100 gave 984 texts the same bits in other company, and 100 of them alone; without the repeats 72 of those
        differed. A CPU's need not and gain little from batches, so there every text has a call to itself.
        """
        steps = (self.attention_mask.sum(dim=1) + _LENGTH_STEP - 1) // _LENGTH_STEP
        lengths = (steps.clamp(min=1) * _LENGTH_STEP).clamp(max=self.input_ids.shape[1])
        for length in lengths.unique().tolist():
            rows = 1 if device.type == "cpu" else max(1, _TOKENS_PER_CALL // length)
            for texts in (lengths == length).nonzero().flatten().split(rows):
                filled = texts[torch.arange(rows) % len(texts)]
                ids, mask = (x[filled, :length].to(device) for x in (self.input_ids, self.attention_mask))
                yield TextBatch(texts.tolist(), ids, mask)

    def encode(
        self, encoder: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """What ``encoder`` makes of ids and mask, ``[r, ...]`` a call, for all texts in order: ``[b, ...]``."""
        rows: dict[int, torch.Tensor] = {}
        for texts, ids, mask in self.batches(device):
            rows.update(zip(texts, encoder(ids, mask), strict=False))
        return torch.stack([rows[index] for index in range(len(rows))])


def tokenize(tokenizer: Any, texts: list[str], max_length: int) -> Tokens:
    """Each text cut or padded to ``max_length`` tokens."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        max_length=max_length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return Tokens(tokens.input_ids, tokens.attention_mask)
