"""The batches of a run: their order, a pure function of its configurations, its data and the step; and a thread that loads them
ahead."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Any

from ..data_prep.loading.batch import Batch
from ..data_prep.loading.dataset import Dataset
from ..data_prep.loading.loader import BatchLoader
from .config import RunConfig


def make_loader(dataset: Dataset, config: RunConfig) -> BatchLoader:
    """The batches of a run that has had one configuration from its first step on."""
    return loader_of_segments(dataset, [(0, config)])


def loader_of_segments(dataset: Dataset, segments: Sequence[tuple[int, RunConfig]]) -> BatchLoader:
    """The batches of the last of several segments of a run, each its first step and its configuration.

    While data, mixture, sequence length and seed stay the same, the order goes on at the next row, in batches of any size. Where
    one of them changes, each source goes on after as many tokens as were read of it, rounded up to rows; other data begin at
    their first row.

    Raises:
        UserError: a mixture does not fit the dataset or the sequence length.
    """
    last_data = max((i for i, (_, config) in enumerate(segments) if config.data != segments[-1][1].data), default=-1)
    segments = segments[last_data + 1 :]
    position: dict[str, Any] = {"first_step": segments[0][0]}
    loader = _loader(dataset, segments[0][1], position)
    for (_, before), (step, after) in pairwise(segments):
        if _order(before) == _order(after):
            position |= {"first_step": step, "first_row": loader.row_of(step)}
        else:
            rows, old, new = loader.read_before(step), before.train.sequence_length, after.train.sequence_length
            starts = {name: -(-count * old // new) for name, count in rows.items()}
            position = {"first_step": step, "first_row": 0, "starts": starts}
        loader = _loader(dataset, after, position)
    return loader


def _order(config: RunConfig) -> tuple[Any, ...]:
    """The values on which the order of rows depends, but for the data."""
    return config.mixture, config.train.sequence_length, config.order_seed


def _loader(dataset: Dataset, config: RunConfig, position: dict[str, Any]) -> BatchLoader:
    return BatchLoader(
        dataset,
        config.mixture,
        sequence_length=config.train.sequence_length,
        batch_sequences=config.train.batch_sequences,
        seed=config.order_seed,
        **position,
    )


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
