"""What a run has still to make, in data-set order: read once, then cut into as many waves as are wanted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastvideo.v1.dataset.progress.scan import INPUT_COLUMNS, Scan, read_index
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.waves.open_waves import NOTHING_HELD, Held
from fastvideo.v1.pipelines.phase import Phase

SAMPLE_PHASES = (Phase.DENOISE, Phase.DECODE)  # those that walk samples; encode walks their inputs


@dataclass(frozen=True)
class Backlog:
    """Samples that lack something: their ``positions`` in the run, and which of their parts each of them lacks.

    ``lacks`` has an array of booleans for each of ``SAMPLE_PHASES`` and of ``INPUT_COLUMNS``: some ten bytes a sample.
    """

    positions: np.ndarray
    lacks: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.positions)

    def since(self, start: int) -> "Backlog":
        """Without the first ``start`` samples."""
        return Backlog(self.positions[start:], {name: lack[start:] for name, lack in self.lacks.items()})

    def count(self, phase: Phase) -> int:
        """How many samples lack what ``phase`` makes."""
        return int(self.lacks[phase].sum())

    def rows(self, run: Run) -> Iterator[pa.RecordBatch]:
        """Their rows (``SAMPLE_SCHEMA``), streamed; no part of the run is read beyond the last of them."""
        start = 0
        for batch in run.iter_batches():
            if not len(self) or self.positions[-1] < start:
                return
            first, last = np.searchsorted(self.positions, (start, start + len(batch)))
            if last > first:
                yield batch.take(pa.array(self.positions[first:last] - start))
            start += len(batch)


def read_backlog(run: Run, scan: Scan, held: Held = NOTHING_HELD) -> Backlog:
    """The samples that miss an input, latents or a video, by ``scan``, and that are not held by a wave already."""
    index = read_index(run)
    lacks = {str(phase): pc.is_in(index["id"], scan[phase].missing_ids).to_numpy() for phase in SAMPLE_PHASES}
    inputs = {name: pc.is_in(index[name], scan[Phase.ENCODE].missing_ids).to_numpy() for name in INPUT_COLUMNS}
    wanted = [
        *lacks.values(),
        *(lack & ~pc.is_in(index[name], held.inputs).to_numpy() for name, lack in inputs.items()),
    ]
    lacks |= inputs
    is_free = ~pc.is_in(index["id"], held.samples).to_numpy()
    positions = np.flatnonzero(np.logical_or.reduce(wanted) & is_free)
    return Backlog(positions, {name: lack[positions] for name, lack in lacks.items()})
