"""Stragglers: ranks that compute much longer than the others, which then wait for them in every step.

All ranks end a step at the same time, so its duration shows no straggler. Compared is the time that a rank computes without
waiting for others: making its batch, and the forward pass of its first micro-batch. Under ZeRO 3 and sequence parallelism the
forward pass holds collectives; then the ranks of a group are slow together and the group is named, or under ZeRO 3 nobody.
"""

import statistics
import time
from collections import deque
from typing import NamedTuple

import torch

WINDOW = 20  # steps
COST = 0.1  # a straggler is reported when it takes this share of the step from everybody


class Straggler(NamedTuple):
    """A rank whose mean of a window is far above the median of all ranks' means; seconds a step."""

    rank: int
    seconds: float
    median_seconds: float


class Stopwatch:
    """Seconds between `start` and `stop` on the device; `seconds` returns them when the device has come so far."""

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
        """Called after the device was waited for."""
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

    def look(self, compute_seconds: list[float], step_seconds: float) -> list[Straggler]:
        """The stragglers of the window that this step completes; none in between.

        Args:
            compute_seconds: seconds that each rank computed in the step, by rank.
            step_seconds: how long the step took everybody.
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
