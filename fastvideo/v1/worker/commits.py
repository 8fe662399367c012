"""Products on their way to the store, while others are made."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastvideo.v1.dataset.objects.store_errors import StoreUnavailable
from fastvideo.v1.logger import init_logger
from fastvideo.v1.worker.phase_jobs import Product

logger = init_logger(__name__)


@dataclass(frozen=True)
class _Commit:
    item: Any
    product: Product
    is_second: bool  # the store did not take it the first time
    future: Future[None]


class Commits:
    """Has ``commit`` called for each item and its product on the one thread of a pool, in order."""

    def __init__(self, thread: ThreadPoolExecutor, commit: Callable[[Any, Product], None]) -> None:
        self._thread, self._commit = thread, commit
        self._under_way: list[_Commit] = []

    def hand_over(self, products: Sequence[tuple[Any, Product]]) -> None:
        """Waits for those before, then begins with these; first again with what the store did not take.

        By now it may be back. Raises what a commit met with, ``StoreUnavailable`` if it did so twice.
        """
        again, lost = [], None
        for before in self._under_way:
            try:
                before.future.result()
            except StoreUnavailable as error:
                if before.is_second:
                    lost = error
                else:
                    logger.warning("%s is handed over once more: %s", before.item.id, error)
                    again.append((before.item, before.product))
        self._under_way = [
            self._begin(*pair, is_second) for is_second, pairs in ((True, again), (False, products)) for pair in pairs
        ]
        if lost is not None:
            raise lost

    def finish(self) -> None:
        """Waits for all; raises like :meth:`hand_over`."""
        while self._under_way:
            self.hand_over([])

    def _begin(self, item: Any, product: Product, is_second: bool) -> _Commit:
        return _Commit(item, product, is_second, self._thread.submit(self._commit, item, product))
