"""Token embedding with its vocabulary split over the tensor-parallel group."""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.v1.distributed import get_tp_group
from fastvideo.v1.distributed.communication import all_reduce
from fastvideo.v1.layers.weight_loading import check_shape


class VocabParallelEmbedding(nn.Module):
    """Rows of a vocabulary, a contiguous range on each rank: ``[b, s]`` token ids to ``[b, s, d]``.

    A vocabulary that the group does not divide is padded with rows that no token selects.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self._group = get_tp_group()
        self._rows = -(-num_embeddings // self._group.size)
        self._first = self._group.rank * self._rows
        self.weight = nn.Parameter(torch.empty(self._rows, embedding_dim), requires_grad=False)
        self.weight.weight_loader = self.load_weight  # type: ignore[attr-defined]

    def load_weight(self, param: nn.Parameter, loaded: torch.Tensor, part: int = 0) -> None:
        check_shape(loaded, (self.num_embeddings, param.shape[1]))
        mine = loaded[self._first : self._first + self._rows]
        param.data[: len(mine)].copy_(mine)
        param.data[len(mine) :].zero_()

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self._group.size == 1:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self._first
        outside = (local < 0) | (local >= self._rows)
        rows = F.embedding(local.masked_fill(outside, 0), self.weight)
        return all_reduce(rows.masked_fill(outside.unsqueeze(-1), 0), self._group)
