"""The rows of a picture in bands, one for each rank of a sample, so that each decodes its own.

Legend: ``b`` batch, ``c`` channels, ``t`` frames, ``h w`` rows and columns of a rank's band, ``H`` rows of the picture,
``p`` ranks. A decoder works on its band as if it were the picture; the few places that look across a band's edge ask
the current bands for what is there. The model group is used, not the sequence group: after denoising each of its ranks
holds the whole latents, and those that shared matrices or branches of guidance would have nothing else to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from fastvideo.v1.distributed.communication import all_gather, exchange_halo
from fastvideo.v1.distributed.group import ParallelGroup
from fastvideo.v1.distributed.parallel_state import get_model_group


@dataclass(frozen=True)
class RowBands:
    """How many latent rows each rank of ``group`` has, from top to bottom.

    Between the layers a latent row may be several rows. In a group of one every method returns what it is given.
    """

    sizes: tuple[int, ...]
    group: ParallelGroup

    def take(self, latents: torch.Tensor) -> torch.Tensor:
        """This rank's band, a view: ``[b c t H w]`` to ``[b c t h w]``."""
        if self.group.size == 1:
            return latents
        rank = self.group.rank
        return latents.narrow(-2, sum(self.sizes[:rank]), self.sizes[rank])

    def gather(self, band: torch.Tensor, dim: int) -> torch.Tensor:
        """All ranks' rows along ``dim``, or what rows are made of: ``[..., h n, ...]`` to ``[..., H n, ...]``."""
        if self.group.size == 1:
            return band
        unit = band.shape[dim] // self.sizes[self.group.rank]
        largest = max(self.sizes) * unit
        missing = largest - band.shape[dim]
        if missing:  # the collective wants equal shapes; what is filled in is cut off again
            band = torch.cat((band, band.narrow(dim, 0, 1).expand_as(band.narrow(dim, 0, missing))), dim)
        whole = all_gather(band, dim, self.group)
        if min(self.sizes) == max(self.sizes):
            return whole
        parts = zip(whole.split(largest, dim), self.sizes, strict=True)
        return torch.cat([part.narrow(dim, 0, size * unit) for part, size in parts], dim)

    def with_neighbours(self, band: torch.Tensor) -> torch.Tensor:
        """The band between the rows next to it, zeros beyond the picture: ``[b c ... h w]`` to ``[b c ... 1+h+1 w]``.

        The result is channels-last.
        """
        batch, channels, *spatial, height, width = band.shape
        out = band.new_empty(batch, *spatial, height + 2, width, channels).movedim(-1, 1)
        out.narrow(-2, 1, height).copy_(band)
        for place, row in zip((0, height + 1), exchange_halo(band, -2, self.group), strict=True):
            margin = out.narrow(-2, place, 1)
            margin.zero_() if row is None else margin.copy_(row)
        return out

    def fill_margins(self, band: torch.Tensor) -> torch.Tensor:
        """``[b c t 1+h+1 w]``, its first and last row replaced in place by the rows next to the band, if there are."""
        if self.group.size == 1:
            return band
        height = band.shape[-2] - 2
        rows = exchange_halo(band.narrow(-2, 1, height), -2, self.group)
        for place, row in zip((0, height + 1), rows, strict=True):
            if row is not None:
                band.narrow(-2, place, 1).copy_(row)
        return band

    def group_moments(
        self, means: torch.Tensor, variances: torch.Tensor, num_groups: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each group of channels over the picture, from each channel's in the bands.

        ``[b c]`` to ``[b num_groups]``, float32. A variance is the mean of those in the parts and of the squared
        distances of their means, which loses nothing where a mean is large.
        """
        b, c = means.shape
        parts = all_gather(torch.stack((means, variances))[None], 0, self.group)
        parts = parts.view(self.group.size, 2, b, num_groups, c // num_groups)
        shares = torch.tensor(self.sizes, device=means.device) / sum(self.sizes)
        shares = shares.view(-1, 1, 1, 1) / parts.shape[-1]
        mean = (parts[:, 0] * shares).sum((0, -1))
        distances = parts[:, 0] - mean.unsqueeze(-1)
        return mean, ((parts[:, 1] + distances.square()) * shares).sum((0, -1))


_bands: ContextVar[RowBands | None] = ContextVar("row_bands", default=None)
_WHOLE = RowBands((1,), ParallelGroup("model"))


def split_rows(num_rows: int) -> RowBands:
    """Bands as even as can be over the model group; a picture of fewer rows than ranks is decoded whole by each."""
    group = get_model_group()
    if num_rows < group.size:
        return _WHOLE
    return RowBands(tuple((num_rows + group.size - 1 - rank) // group.size for rank in range(group.size)), group)


def get_bands() -> RowBands:
    """The bands in which the running decoder works; the whole picture outside of ``use_bands``."""
    return _bands.get() or _WHOLE


@contextmanager
def use_bands(bands: RowBands) -> Iterator[None]:
    """Within the block, layers take what they are given for a band of a picture."""
    token = _bands.set(bands)
    try:
        yield
    finally:
        _bands.reset(token)
