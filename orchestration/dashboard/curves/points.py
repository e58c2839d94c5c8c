"""Columns of measurements, appended row by row and thinned to a bounded number of points that preserves each curve."""

from itertools import pairwise

import numpy as np

# Axes of a curve: each point has them all.
AXES = ("step", "tokens", "time")
MOST_BUCKETS = 2048  # of a run in memory, each with two points
NEW_ROWS = 1024  # taken in at once, which costs a copy of all


class Points:
    """Rows of numbers (`AXES`, then the columns), thinned to a bounded number as rows are added.

    All are kept in `_rows` at first. When they are too many, `_low` and `_high` hold the smallest and the largest value of each
    column in each bucket of `_width` rows, with the axes where it is: float `[buckets, columns, 4]`. `_end` is the last row.
    """

    def __init__(self, columns: int, most: int = MOST_BUCKETS) -> None:
        self._columns, self._most, self._width = columns, most, 1
        self._new: list[list[float | None]] = []  # added since the others were thinned
        self._rows = self._end = np.empty((0, len(AXES) + columns))
        self._low = self._high = np.empty((0, columns, len(AXES) + 1))

    def append(self, row: list[float | None]) -> None:
        """Add a row of axes and columns; None for a missing value."""
        self._new.append(row)
        if len(self._new) >= NEW_ROWS:
            self._thin()

    def _thin(self) -> None:
        if not self._new:
            return
        self._rows = np.concatenate([self._rows, np.array(self._new, dtype=float)])
        self._new = []
        self._end = self._rows[-1:]
        if self._width == 1:
            if len(self._rows) <= self._most:
                return
            self._width = 2
        whole = len(self._rows) // self._width * self._width
        new = _quarters(self._rows[:whole]).reshape(-1, self._width, self._columns, len(AXES) + 1)
        self._low = np.concatenate([self._low, _extreme(new, lowest=True)])
        self._high = np.concatenate([self._high, _extreme(new, lowest=False)])
        self._rows = self._rows[whole:].copy()
        while len(self._low) > self._most:
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
        self._thin()
        self._rows = self._rows[self._rows[:, 0] <= step]
        self._end = self._end[self._end[:, 0] <= step]
        kept = np.nanmax(self._high[:, :, 0], axis=1, initial=-1) <= step
        self._low, self._high = self._low[kept], self._high[kept]

    def curve(self, column: int, most: int) -> dict[str, list[float | None]] | None:
        """A column as lists `step`, `tokens`, `time` and `value` of at most `most` points; None without a number."""
        points = self.of(column)
        if not len(points):
            return None
        points = points[thin_curve(points[:, -1], most)]
        axes = {axis: _plain(points[:, number]) for number, axis in enumerate(AXES)}
        axes["step"] = points[:, 0].astype(int).tolist()
        return axes | {"value": points[:, -1].tolist()}

    def of(self, column: int) -> np.ndarray:
        """The points of a column with a finite value, each once, by step: float `[points, 4]`, the axes and the value."""
        self._thin()
        rest = _quarters(np.concatenate([self._rows, self._end]))[:, column]
        points = np.concatenate([self._low[:, column], self._high[:, column], rest])
        points = points[np.isfinite(points[:, -1])]
        points = points[np.lexsort((points[:, -1], points[:, 0]))]
        again = (np.diff(points[:, 0]) == 0) & (np.diff(points[:, -1]) == 0)
        return np.delete(points, np.flatnonzero(again) + 1, axis=0)


def _quarters(rows: np.ndarray) -> np.ndarray:
    """Rows as float `[rows, columns, 4]`: for each column the axes and the value."""
    axes = np.broadcast_to(rows[:, None, : len(AXES)], (len(rows), rows.shape[1] - len(AXES), len(AXES)))
    return np.concatenate([axes, rows[:, len(AXES) :, None]], axis=2)


def _extreme(groups: np.ndarray, *, lowest: bool) -> np.ndarray:
    """The point with the smallest or largest value of each group and column, from `[groups, size, columns, 4]`."""
    values = groups[..., -1]
    at = np.where(np.isnan(values), np.inf if lowest else -np.inf, values)
    chosen = at.argmin(axis=1) if lowest else at.argmax(axis=1)
    return np.take_along_axis(groups, chosen[:, None, :, None], axis=1)[:, 0]


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON values; NaN, which JSON lacks, as None."""
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
