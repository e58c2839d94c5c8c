"""Detection of stragglers: ranks that compute much longer than the others, which wait for them in every step.

All ranks end a step at the same time, so its duration shows no straggler. The detector compares the time that each rank computes
without waiting for others: loading its batch, and the forward pass of its first micro-batch. Under sequence parallelism and
ZeRO 3 the forward pass contains collectives: then all ranks of a sequence group appear slow, or under ZeRO 3 no rank does.
"""

import statistics
import time
from collections import deque
from typing import NamedTuple

import torch

WINDOW = 20  # steps
COST = 0.1  # a straggler is reported if it delays the step by this share


class Straggler(NamedTuple):
    """A rank whose mean compute time over a window is far above the median rank's; seconds a step."""

    rank: int
    seconds: float
    median_seconds: float


class Stopwatch:
    """Seconds between `start` and `stop` on the device; read them with `seconds` after a synchronization."""

    def __init__(self, device: torch.device):
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._started = self._stopped = 0.0

    def start(self) -> None:
        if self._events:
            self._events[0].record()
        self._started = time.perf_counter()

    def stop(self) -> None:
        if self._events:
            self._events[1].record()
        self._stopped = time.perf_counter()

    def seconds(self) -> float:
        """The measured seconds; call it after the device was synchronized."""
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._stopped - self._started


class StragglerDetector:
    """Finds stragglers in windows of `WINDOW` steps.

    Args:
        factor: how many times the median a rank's mean must be; 0 turns it off.
    """

    def __init__(self, factor: float):
        self._factor = factor
        self._window: deque[list[float]] = deque(maxlen=WINDOW)
        self._step_seconds: deque[float] = deque(maxlen=WINDOW)

    def record_step(self, compute_seconds: list[float], step_seconds: float) -> list[Straggler]:
        """Record a step and return the stragglers of the window that it completes; empty for the other steps.

        Args:
            compute_seconds: seconds that each rank computed in the step, by rank.
            step_seconds: duration of the step.
        """
        self._window.append(compute_seconds)
        self._step_seconds.append(step_seconds)
        if not self._factor or len(self._window) < WINDOW:
            return []
        means = [statistics.fmean(of_rank) for of_rank in zip(*self._window, strict=True)]
        median, step = statistics.median_low(means), statistics.fmean(self._step_seconds)
        self._window.clear()
        self._step_seconds.clear()
        return [
            Straggler(rank, mean, median)
            for rank, mean in enumerate(means)
            if mean > self._factor * median and mean - median > COST * step
        ]
