"""The events of a run in bounded memory: curves as columns of numbers; each look reads only so many new bytes."""

import threading
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...pipeline.run.events import EventReader

# Fields of a `step` event with a curve on the page.
COLUMNS = (
    "loss",
    "loss_text",
    "loss_recall",
    "bits_per_byte",
    "learning_rate",
    "grad_norm",
    "gate_mean",
    "tokens_per_second",
    "mfu",
    "memory_gib",
    "data_stall_seconds",
)
# Axes of a curve: each point has them all.
AXES = ("step", "tokens", "time")
MOST_POINTS = 1500  # of a curve sent to the browser
MOST_BUCKETS = 4096  # of a run in memory
MOST_OTHERS = 1000  # events that are no steps, the newest
LOOK_BYTES = 1 << 22  # of each log at once
LOOK_SECONDS = 1.0


class History:
    """The events of one run, in bounded memory; used by several threads under its lock.

    A curve of up to 4,096 steps is kept as it is. Of a longer one, stretches of 2, 4, 8 ... steps keep the smallest and the
    largest value of each column, where they are. After a restart or a rollback the steps beyond it are dropped: others take
    their place.

    Attributes:
        last_step: the last `step` event, empty before the first.
        others: the newest events but `step` and `health`, oldest first.
        health: the last `health` event.
        counts: how many events of each kind there were; starts of further stages in one process count for nothing.
        first_start: the first `start` event.
        problem: the fault of the log, one line; the other lines are shown.
        unread: bytes of the log that are still to be read.
    """

    def __init__(self, run_folder: Path):
        self._events = EventReader.of_any_run(run_folder)
        self.lock = threading.RLock()
        self.unread = 0
        self.version = 0
        self._clear()

    def _clear(self) -> None:
        self._points = _Points()
        self.last_step: dict[str, Any] = {}
        self.others: deque[dict[str, Any]] = deque(maxlen=MOST_OTHERS)
        self.counts: dict[str, int] = {}
        self.first_start: dict[str, Any] | None = None
        self.health: dict[str, Any] | None = None
        self.problem: str | None = None

    def read(self, seconds: float = LOOK_SECONDS) -> None:
        """Read new events for about so long; those of a log that was replaced take the place of the earlier ones."""
        with self.lock:
            end = time.monotonic() + seconds
            while True:
                try:
                    events = self._events.read(LOOK_BYTES)
                except OSError as error:
                    self.problem = f"its log cannot be read ({error.strerror})"
                    return
                if self._events.restarted:
                    self._clear()
                self._add(events)
                self.problem = self._events.damage or None
                self.unread = self._events.unread
                self.version += bool(events) or self._events.restarted
                if not self.unread or time.monotonic() >= end:
                    return

    def _add(self, events: list[dict[str, Any]]) -> None:
        rows: list[list[float | None]] = []
        for event in events:
            kind = event["kind"]
            if not event.get("same_process"):  # else the next stage of a start that is counted
                self.counts[kind] = self.counts.get(kind, 0) + 1
            if kind == "step":
                rows.append([event.get(name) for name in (*AXES, *COLUMNS)])
                self.last_step = event
                continue
            if kind == "health":
                self.health = event
                continue
            self.others.append(event)
            if kind == "start":
                event["attempt"] = self.counts.get(kind, 1)
                self.first_start = self.first_start or event
            if kind in ("start", "rollback"):
                self._points.extend(rows)
                rows = []
                self._points.drop_after(event.get("step", 0))
        self._points.extend(rows)

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds, oldest first."""
        return [event for event in self.others if event["kind"] in kinds]

    def curve(self, name: str, most: int = MOST_POINTS) -> dict[str, list[float | None]] | None:
        """The curve of a column as lists `step`, `tokens`, `time` and `value` of at most `most` points; None without a number."""
        with self.lock:
            points = self._points.of(COLUMNS.index(name))
        if not len(points):
            return None
        points = points[thin_curve(points[:, -1], most)]
        axes = {axis: _plain(points[:, number]) for number, axis in enumerate(AXES)}
        axes["step"] = points[:, 0].astype(int).tolist()
        return axes | {"value": points[:, -1].tolist()}


class _Points:
    """Rows of numbers (`AXES`, then `COLUMNS`), thinned to a bounded number as more come.

    All are kept in `_rows` at first. When they are too many, `_low` and `_high` hold the smallest and the largest value of each
    column in each bucket of `_width` rows, with the axes where it is: float `[buckets, columns, 4]`. `_end` is the last row.
    """

    def __init__(self) -> None:
        self._width = 1
        self._rows = self._end = np.empty((0, len(AXES) + len(COLUMNS)))
        self._low = self._high = np.empty((0, len(COLUMNS), len(AXES) + 1))

    def extend(self, rows: list[list[float | None]]) -> None:
        if not rows:
            return
        self._rows = np.concatenate([self._rows, np.array(rows, dtype=float)])
        self._end = self._rows[-1:]
        if self._width == 1:
            if len(self._rows) <= MOST_BUCKETS:
                return
            self._width = 2
        whole = len(self._rows) // self._width * self._width
        new = _quarters(self._rows[:whole]).reshape(-1, self._width, len(COLUMNS), len(AXES) + 1)
        self._low = np.concatenate([self._low, _extreme(new, lowest=True)])
        self._high = np.concatenate([self._high, _extreme(new, lowest=False)])
        self._rows = self._rows[whole:].copy()
        while len(self._low) > MOST_BUCKETS:
            self._merge()

    def _merge(self) -> None:
        """Join neighbouring buckets; a last one without a neighbour keeps its points in a bucket of its own."""
        even = len(self._low) // 2 * 2
        for name, lowest in (("_low", True), ("_high", False)):
            buckets = getattr(self, name)
            pairs = buckets[:even].reshape(-1, 2, *buckets.shape[1:])
            setattr(self, name, np.concatenate([_extreme(pairs, lowest=lowest), buckets[even:]]))
        self._width *= 2

    def drop_after(self, step: int) -> None:
        """Drop the points after a step."""
        self._rows = self._rows[self._rows[:, 0] <= step]
        self._end = self._end[self._end[:, 0] <= step]
        kept = np.nanmax(self._high[:, :, 0], axis=1, initial=-1) <= step
        self._low, self._high = self._low[kept], self._high[kept]

    def of(self, column: int) -> np.ndarray:
        """The points of a column with a finite value, each once, by step: float `[points, 4]`, the axes and the value."""
        rest = _quarters(np.concatenate([self._rows, self._end]))[:, column]
        points = np.concatenate([self._low[:, column], self._high[:, column], rest])
        points = points[np.isfinite(points[:, -1])]
        points = points[np.lexsort((points[:, -1], points[:, 0]))]
        again = (np.diff(points[:, 0]) == 0) & (np.diff(points[:, -1]) == 0)
        return np.delete(points, np.flatnonzero(again) + 1, axis=0)


def _quarters(rows: np.ndarray) -> np.ndarray:
    """Rows as float `[rows, columns, 4]`: of each column the axes and the value."""
    axes = np.broadcast_to(rows[:, None, : len(AXES)], (len(rows), len(COLUMNS), len(AXES)))
    return np.concatenate([axes, rows[:, len(AXES) :, None]], axis=2)


def _extreme(groups: np.ndarray, *, lowest: bool) -> np.ndarray:
    """Of `[groups, size, columns, 4]` the point with the smallest or largest value of each group and column."""
    values = groups[..., -1]
    at = np.where(np.isnan(values), np.inf if lowest else -np.inf, values)
    chosen = at.argmin(axis=1) if lowest else at.argmax(axis=1)
    return np.take_along_axis(groups, chosen[:, None, :, None], axis=1)[:, 0]


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which lacks NaN."""
    return [None if value != value else value for value in values.tolist()]


def thin_curve(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` values that preserve the curve: minimum and maximum of each stretch, and the last value."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (most - 1) // 2 + 1, dtype=int)
    indices = {len(values) - 1}
    for low, high in pairwise(edges):
        part = values[low:high]
        indices |= {low + int(part.argmin()), low + int(part.argmax())}
    return np.array(sorted(indices))
