"""A run's whole `events.jsonl` in memory, as columns of numbers; each look reads only what was added since the last."""

from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...models.common.errors import UserError
from ...pipeline.run.events import EventTail
from ..monitor.cached_files import stamp

# Fields of a `step` event that the page draws.
COLUMNS = (
    "loss",
    "loss_text",
    "loss_recall",
    "bits_per_byte",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "memory_gib",
    "data_stall_seconds",
)
# Points of a curve that go to the browser, at most.
MOST_POINTS = 1500


class History:
    """The events of one run.

    Attributes:
        last_step: the last `step` event, empty before the first.
        others: all other events but `health`, oldest first.
        health: the last `health` event.
        problem: what is wrong with the log, one line; what came before it is still shown.
    """

    def __init__(self, path: Path):
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self._tail, self._size = EventTail(self.path), 0
        self._rows: dict[int, int] = {}
        self._steps = array("q")
        self._columns = {name: array("d") for name in COLUMNS}
        self.last_step: dict[str, Any] = {}
        self.others: list[dict[str, Any]] = []
        self.health: dict[str, Any] | None = None
        self.problem: str | None = None

    def read(self) -> None:
        """Take in what is new. A log that became shorter is read anew."""
        now = stamp(self.path)
        size = now[1] if now else 0
        if size < self._size:
            self._begin()
        self._size = size
        if self.problem is not None:
            return
        try:
            events = self._tail.read()
        except UserError as error:
            self.problem = str(error)
            return
        for event in events:
            if event["kind"] == "step":
                self._add_step(event)
            elif event["kind"] == "health":
                self.health = event
            else:
                self.others.append(event)

    def _add_step(self, event: dict[str, Any]) -> None:
        """A step that was repeated after a crash counts as its last record says, as in `pipeline.events.steps`."""
        step, row = event["step"], self._rows.get(event["step"])
        if row is None:
            self._rows[step] = len(self._steps)
            self._steps.append(step)
        for name, column in self._columns.items():
            value = event.get(name)
            number = float("nan") if value is None else float(value)
            if row is None:
                column.append(number)
            else:
                column[row] = number
        self.last_step = event

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds, oldest first."""
        return [event for event in self.others if event["kind"] in kinds]

    def curve(self, name: str) -> dict[str, list[float | None]] | None:
        """`step` and `value` of a column, thinned to `MOST_POINTS`; None if it holds no number."""
        steps, values = np.array(self._steps), np.array(self._columns[name])
        known = np.isfinite(values)
        if not known.any():
            return None
        kept = thinned(values[known], MOST_POINTS)
        return {"step": steps[known][kept].tolist(), "value": values[known][kept].tolist()}


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` values that draw the same curve: the least and greatest of each stretch, and the last."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (most - 1) // 2 + 1, dtype=int)
    kept = {len(values) - 1}
    for low, high in pairwise(edges):
        part = values[low:high]
        kept |= {low + int(part.argmin()), low + int(part.argmax())}
    return np.array(sorted(kept))
