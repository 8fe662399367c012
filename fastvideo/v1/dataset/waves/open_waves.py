"""Waves that are open: each has its shards in a folder of the run, whoever works on them, until it is closed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from fastvideo.v1.dataset.layout import wave_dir, waves_dir
from fastvideo.v1.dataset.runs.run import Run
from fastvideo.v1.dataset.runs.samples import from_parquet
from fastvideo.v1.pipelines.phase import ALL_PHASES, Phase

_NOTHING = pa.array([], pa.string())


@dataclass(frozen=True, kw_only=True)
class Held:
    """What open waves are to make: ids of samples, and of inputs."""

    samples: pa.Array
    inputs: pa.Array

    def by_phase(self) -> dict[Phase, pa.Array]:
        """The ids of the objects that are to be made."""
        return {phase: self.inputs if phase is Phase.ENCODE else self.samples for phase in ALL_PHASES}


NOTHING_HELD = Held(samples=_NOTHING, inputs=_NOTHING)


def open_waves(run: Run) -> list[str]:
    """The names of the run's open waves, oldest first."""
    return sorted({path.parent.name for path in _shards_in(run, waves_dir(run.name))})


def shard_paths(run: Run, wave: str) -> dict[str, str]:
    """The shards of a wave, path by name; none once it is closed."""
    return {path.stem: str(path) for path in _shards_in(run, wave_dir(run.name, wave))}


def close_wave(run: Run, wave: str) -> None:
    """Removes a wave's folder; what it has not made is cut again, and whoever still works on it stops."""
    run.output.delete_many([info.path for info in run.output.list(wave_dir(run.name, wave))])


def read_held(run: Run, waves: Collection[str]) -> Held:
    """What the shards of these waves hold; of one that is closed meanwhile, nothing."""
    paths = [path for path in _shards_in(run, waves_dir(run.name)) if path.parent.name in waves]
    ids = {True: [_NOTHING], False: [_NOTHING]}
    for path in paths:
        try:
            table = from_parquet(run.output.read(str(path)), ["id"])
        except FileNotFoundError:
            continue
        ids[path.name.startswith(Phase.ENCODE)] += table["id"].chunks
    inputs, samples = (pa.concat_arrays(ids[is_encode]).unique() for is_encode in (True, False))
    return Held(samples=samples, inputs=inputs)


def _shards_in(run: Run, folder: str) -> list[PurePosixPath]:
    paths = (PurePosixPath(info.path) for info in run.output.list(folder))
    return sorted(path for path in paths if path.suffix == ".parquet")
