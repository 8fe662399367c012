"""In which order the shards of a wave run."""

from collections.abc import Sequence

from fastvideo.v1.dataset.waves.wave import WaveShard
from fastvideo.v1.pipelines.phase import ALL_PHASES


class Schedule:
    """Hands out shards whose inputs are there; what ends samples comes before what begins new ones.

    A shard that failed counts as ended: those after it make what they can.
    """

    def __init__(self, shards: Sequence[WaveShard]) -> None:
        self._waiting = sorted(shards, key=lambda shard: (-ALL_PHASES.index(shard.phase), shard.name))
        self._unfinished = {shard.name for shard in shards}

    def next(self) -> WaveShard | None:
        """The next shard to start, or None while all that are left wait for others."""
        for position, shard in enumerate(self._waiting):
            if self._unfinished.isdisjoint(shard.needs):
                return self._waiting.pop(position)
        return None

    def finish(self, name: str) -> None:
        """Notes that a shard has ended, well or not."""
        self._unfinished.discard(name)
