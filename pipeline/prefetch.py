"""Prefetching of batches by a thread, with the time that training waited for them."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..data_prep.loading.batch import Batch


class Prefetcher:
    """Loads the batches of the next `depth` steps in the background. Use as a context.

    A batch is a pure function of its step, so nothing needs to be stored with a checkpoint; after a jump to another step than
    the next, prefetching restarts there.

    Args:
        make: `BatchLoader.batch`.
        last: steps from here on are not loaded.
    """

    def __init__(self, make: Callable[[int], Batch], last: int, *, depth: int = 2):
        self._make, self._last, self._depth = make, last, depth
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds waited for it."""
        started = time.perf_counter()
        if self._ahead and self._ahead[0][0] != step:
            for _, future in self._ahead:
                future.cancel()
            self._ahead.clear()
        self._fill(step)
        _, future = self._ahead.popleft()
        batch = future.result()
        self._fill(step + 1)
        return batch, time.perf_counter() - started

    def _fill(self, first: int) -> None:
        begin = self._ahead[-1][0] + 1 if self._ahead else first
        for step in range(begin, min(first + self._depth, self._last)):
            self._ahead.append((step, self._pool.submit(self._make, step)))
