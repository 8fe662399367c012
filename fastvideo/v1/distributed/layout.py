"""How many processes stand along each axis of the world; arithmetic alone, so that it may be read without torch."""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class ParallelLayout:
    """The factors of the world. Ranks count with data outermost, then cfg, ring, ulysses, and tensor innermost.

    ``data``: samples at once; ``cfg``: the branches of guidance, 1 or 2; ``ulysses``: tokens, exchanged for heads in
    attention; ``ring``: tokens, whose keys go round; ``tensor``: the matrices. Raises ``ValueError`` for a factor that
    no world can have.
    """

    data: int = 1
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        possible = [max(1, factor) for factor in astuple(self)]
        possible[1] = min(possible[1], 2)
        if tuple(possible) != astuple(self):
            raise ValueError(
                f"layout {self}: every factor must be at least 1, and cfg, the two branches of guidance, at most 2; "
                f"nearest: {ParallelLayout(*possible)}"
            )

    def __str__(self) -> str:
        return (
            f"data={self.data} x cfg={self.cfg} x ring={self.ring} x ulysses={self.ulysses} x tensor={self.tensor} "
            f"(= {self.size})"
        )

    @property
    def sequence(self) -> int:
        """Processes that share the tokens of one branch of one sample."""
        return self.ulysses * self.ring

    @property
    def model_size(self) -> int:
        """Processes that work on one sample."""
        return self.cfg * self.sequence * self.tensor

    @property
    def size(self) -> int:
        return self.data * self.model_size

    @property
    def brief(self) -> str:
        """The factors that are not 1."""
        names = ("data", "cfg", "ring", "ulysses", "tensor")
        return " x ".join(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) > 1) or "one GPU"

    @classmethod
    def all_of(cls, num_gpus: int) -> Iterator["ParallelLayout"]:
        """Every layout of ``num_gpus``."""
        return (cls(*sizes) for sizes in _factorizations(num_gpus, 5) if sizes[1] <= 2)

    @classmethod
    def of_gpus(
        cls, num_gpus: int, *, cfg_size: int = 1, sp_size: int = 1, ring_size: int = 1, tp_size: int = 1
    ) -> "ParallelLayout":
        """The layout on ``num_gpus``, which as many samples share as there is room for.

        ``ring_size`` is the part of ``sp_size`` that is done by ring attention. Raises ``ValueError`` where the sizes
        do not divide.
        """
        asked = f"cfg_size={cfg_size} x sp_size={sp_size} (ring_size={ring_size}) x tp_size={tp_size}"
        if min(num_gpus, cfg_size, sp_size, ring_size, tp_size) < 1:
            raise ValueError(f"num_gpus={num_gpus} as {asked}: every size must be at least 1; nearest: 1")
        if sp_size % ring_size:
            nearest = min(_divisors(sp_size), key=lambda size: _distance((size,), (ring_size,)))
            raise ValueError(f"{asked}: ring_size must divide sp_size; nearest: ring_size={nearest}")
        model = cls(cfg=cfg_size, ulysses=sp_size // ring_size, ring=ring_size, tensor=tp_size)
        if num_gpus % model.size:
            nearest = max(1, round(num_gpus / model.size)) * model.size
            raise ValueError(
                f"num_gpus={num_gpus} must be a multiple of {asked} = {model.size}; nearest: num_gpus={nearest}"
            )
        return cls(num_gpus // model.size, model.cfg, model.ulysses, model.ring, model.tensor)

    def check_num_processes(self, num_processes: int) -> None:
        """Raises ``ValueError``, with the nearest layout that fits, unless there are ``size`` processes."""
        if num_processes != self.size:
            raise ValueError(
                f"layout {self} must have as many processes as there are, {num_processes}; "
                f"nearest: {self.nearest(num_processes)}"
            )

    def nearest(self, num_processes: int) -> "ParallelLayout":
        """The layout of ``num_processes`` whose factors differ least in ratio; ties change the outermost."""
        factors = astuple(self)
        fitting = (astuple(layout) for layout in self.all_of(num_processes))
        return ParallelLayout(*min(fitting, key=lambda others: (_distance(others, factors), *_ratios(others, factors))))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _factorizations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in _divisors(number):
        yield from ((first, *rest) for rest in _factorizations(number // first, count - 1))


def _ratios(these: tuple[int, ...], those: tuple[int, ...]) -> list[float]:
    return [abs(math.log(this / that)) for this, that in zip(these[::-1], those[::-1], strict=True)]


def _distance(these: tuple[int, ...], those: tuple[int, ...]) -> float:
    return round(sum(_ratios(these, those)), 9)
