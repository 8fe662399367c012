"""Which tokens of a sample lie on which rank of the sequence group.

Legend: ``s`` tokens of a sample, in ``g`` equal runs (its frames, say; mostly one), ``c`` tokens of a run on a rank,
``p`` ranks.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import torch

from fastvideo.v1.distributed.communication import all_gather
from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.parallel_state import get_sp_group


@dataclass(frozen=True)
class TokenShards:
    """Equal parts of each run of a sample's tokens, filled up with zeros at the end where ranks do not divide a run.

    A rank's part is ``[g c]``. After it a rank may hold ``num_replicated`` tokens that all ranks hold, of text say. In
    a group of one every method returns what it is given.
    """

    num_tokens: int
    num_runs: int = 1
    num_replicated: int = 0
    group: ParallelGroup = field(default_factory=get_sp_group)

    @property
    def part_size(self) -> int:
        """``c``."""
        return -(-self.num_tokens // self.num_runs // self.group.size)

    def take(self, runs: torch.Tensor) -> torch.Tensor:
        """This rank's part of each run: ``[r, s / g, ...]`` to ``[r, c, ...]``."""
        padding = self.part_size * self.group.size - runs.shape[1]
        if padding:
            runs = torch.cat((runs, runs.new_zeros(len(runs), padding, *runs.shape[2:])), dim=1)
        return self.group.shard(runs, dim=1)

    def take_rows(self, table: torch.Tensor) -> torch.Tensor:
        """This rank's part of a table with a row for each token: ``[s, d]`` to ``[g c, d]``."""
        return self.take(table.unflatten(0, (self.num_runs, -1))).flatten(0, 1)

    def gather(self, parts: torch.Tensor) -> torch.Tensor:
        """All ranks' parts of each run, without the filling: ``[r, c, ...]`` to ``[r, s / g, ...]``."""
        return all_gather(parts, dim=1, group=self.group)[:, : self.num_tokens // self.num_runs]

    def places(self, first_rank: int, num_ranks: int, device: torch.device) -> slice | torch.Tensor:
        """Where in the parts ``[p g c]`` of some ranks in turn their tokens are: in the order of the sample, without
        the filling.
        """
        run_size, size = self.num_tokens // self.num_runs, self.part_size
        if self.num_runs > 1:
            return _places_in_runs(run_size, self.num_runs, size, first_rank, num_ranks, device)
        return slice(0, max(0, min(run_size - first_rank * size, num_ranks * size)))


@lru_cache(maxsize=16)
def _places_in_runs(
    run_size: int, num_runs: int, part_size: int, first_rank: int, num_ranks: int, device: torch.device
) -> torch.Tensor:
    token = torch.arange(run_size, device=device)
    rank = token // part_size - first_rank
    token, rank = (x[(rank >= 0) & (rank < num_ranks)] for x in (token, rank))
    run = torch.arange(num_runs, device=device)[:, None]
    return ((rank * num_runs + run) * part_size + token % part_size).flatten()
