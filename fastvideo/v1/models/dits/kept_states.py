"""What a transformer need not compute twice while a batch is denoised. Nothing of a result changes, so it is always on.

Of a text it makes the same keys and values at every step; and before it looks at one, it makes the same of a step's
latents for each branch of guidance. A transformer knows neither steps nor branches: it names the tensors that something
is made of, and is spared the work where whoever denoises vouches that they are the ones it has seen before.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

Inputs = tuple[torch.Tensor | None, ...]
Outputs = TypeVar("Outputs", bound=tuple[torch.Tensor | None, ...])


class NothingKept:
    """For a transformer that is called by itself: everything is computed."""

    def of_batch(self, owner: object, inputs: Inputs, compute: Callable[[], Outputs]) -> Outputs:
        """``compute()``, which ``owner`` makes of ``inputs`` and of its weights alone; small, since it is kept long."""
        return compute()

    def of_step(self, owner: object, inputs: Inputs, compute: Callable[[], Outputs]) -> Outputs:
        """``compute()``, which ``owner`` makes of ``inputs``, its weights and the step alone."""
        return compute()

    def begin_step(self, transformer: object, *shared: torch.Tensor) -> None:
        """Must be called before each step, which all branches compute from ``shared``, by ``transformer``."""


class KeptStates(NothingKept):
    """Results by their owner and inputs. What is made of tensors that are vouched for is vouched for itself.

    ``constants`` are the tensors that stay as they are for the batch. A step's results are given up when the last of
    ``num_branches`` has had them, and a batch's when another transformer takes over.
    """

    def __init__(self, constants: Iterable[torch.Tensor | None], num_branches: int) -> None:
        self._constants = tuple(constants)
        self._num_branches = num_branches
        self._transformer: object = None
        self._of_batch = _Results(self._constants)
        self._of_step = _Results(())

    def begin_step(self, transformer: object, *shared: torch.Tensor) -> None:
        if transformer is not self._transformer:
            self._transformer, self._of_batch = transformer, _Results(self._constants)
        self._of_step = _Results(shared)

    def of_batch(self, owner: object, inputs: Inputs, compute: Callable[[], Outputs]) -> Outputs:
        return self._of_batch.get(owner, inputs, compute)

    def of_step(self, owner: object, inputs: Inputs, compute: Callable[[], Outputs]) -> Outputs:
        if self._num_branches == 1:
            return compute()
        return self._of_step.get(owner, inputs, compute, num_uses=self._num_branches)


class _Results:
    """Tensors are told apart by identity: an equal one that someone else has made is computed with anew."""

    def __init__(self, vouched: Iterable[torch.Tensor | None]) -> None:
        self._vouched: dict[int, weakref.ref[torch.Tensor]] = {}
        self._results: dict[Any, tuple[Any, int]] = {}
        self._vouch_for(vouched)

    def get(
        self, owner: object, inputs: Inputs, compute: Callable[[], Outputs], num_uses: int | None = None
    ) -> Outputs:
        if not all(map(self._is_vouched, inputs)):
            return compute()
        key = (owner, *map(id, inputs))
        outputs, uses = self._results.pop(key, (None, 0))
        if outputs is None:
            outputs = compute()
            self._vouch_for(outputs)
        if uses + 1 != num_uses:
            self._results[key] = outputs, uses + 1
        return outputs

    def _vouch_for(self, tensors: Iterable[torch.Tensor | None]) -> None:
        self._vouched |= {id(tensor): weakref.ref(tensor) for tensor in tensors if tensor is not None}

    def _is_vouched(self, tensor: torch.Tensor | None) -> bool:
        return tensor is None or (id(tensor) in self._vouched and self._vouched[id(tensor)]() is tensor)
