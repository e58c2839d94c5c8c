"""The batches of a run, whose order is a pure function of its configurations, its data and the step, and a thread that
prefetches them."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple

from ..data_prep.loading.batch import Batch
from ..data_prep.loading.dataset import Dataset
from ..data_prep.loading.loader import BatchLoader
from .config import RunConfig, TrainSection


def make_loader(dataset: Dataset, config: RunConfig) -> BatchLoader:
    """The loader for a run that has had one configuration from its first step on; with a batch ramp, for its batches of full
    size."""
    return loader_of_segments(dataset, [(stage.step, stage.config) for stage in stages_of([(0, config)])])


class Stage(NamedTuple):
    """A stretch of training with one configuration and one size of batch.

    Attributes:
        step: the step after which it begins.
        config: of the engine, the data and the speed: its `train.batch_tokens` are those of the stage.
        train: the hyperparameters as they were given, for schedules.
    """

    step: int
    config: RunConfig
    train: TrainSection


def stages_of(segments: Sequence[tuple[int, RunConfig]]) -> list[Stage]:
    """Split the segments of a run, given by first step and configuration, into stages."""
    stages = []
    ends = [step for step, _ in segments[1:]]
    for (begin, config), end in zip(segments, [*ends, None], strict=True):
        sizes = config.train.batch_stages
        for number, (first, batch) in enumerate(sizes):
            last = sizes[number + 1][0] if number + 1 < len(sizes) else None
            if (last is None or last > begin) and (end is None or max(first, begin) < end or first <= begin == end):
                stages.append(Stage(max(first, begin), _with_batch(config, batch), config.train))
    return stages


def _with_batch(config: RunConfig, batch_tokens: int) -> RunConfig:
    """The configuration without a ramp, with one size of batch, and micro-batches no larger than what a rank has of it."""
    if config.train.batch_ramp is None:
        return config
    train = config.train.model_copy(update={"batch_tokens": batch_tokens, "batch_ramp": None})
    rows = train.batch_sequences // (config.run.workers // config.run.sequence_parallel)
    size = config.run.microbatch_sequences
    run = config.run.model_copy(update={"microbatch_sequences": None if size is None else min(size, rows)})
    return config.model_copy(update={"train": train, "run": run})


def loader_of_segments(dataset: Dataset, segments: Sequence[tuple[int, RunConfig]]) -> BatchLoader:
    """The loader for the last of a run's segments, which are given by first step and configuration without a batch ramp.

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
    """The configuration values on which the order of rows depends, besides the data."""
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
