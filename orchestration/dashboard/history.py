"""A run's whole `events.jsonl` in memory, as columns of numbers; each update reads only new events."""

from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...models.common.errors import UserError
from ...pipeline.run.events import EventReader

# Fields of a `step` event with a curve on the page.
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
# Points of a curve sent to the browser, at most.
MOST_POINTS = 1500


class History:
    """The events of one run, in memory.

    Attributes:
        last_step: the last `step` event, empty before the first.
        others: all other events but `health`, oldest first.
        health: the last `health` event.
        problem: the fault of the log, one line; the events before it are still shown.
    """

    def __init__(self, run_folder: Path):
        self._events = EventReader.of_run(run_folder)
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[int, int] = {}
        self._steps = array("q")
        self._columns = {name: array("d") for name in COLUMNS}
        self.last_step: dict[str, Any] = {}
        self.others: list[dict[str, Any]] = []
        self.health: dict[str, Any] | None = None
        self.problem: str | None = None

    def read(self) -> None:
        """Read the new events; those of a log that was replaced take the place of the earlier ones."""
        try:
            events = self._events.read()
        except UserError as error:
            self.problem = str(error)
            return
        self.problem = None
        if self._events.restarted:
            self._clear()
        for event in events:
            if event["kind"] == "step":
                self._add_step(event)
            elif event["kind"] == "health":
                self.health = event
            else:
                self.others.append(event)

    def _add_step(self, event: dict[str, Any]) -> None:
        """Store a step; one repeated after a crash replaces its earlier record, as in `pipeline.run.events.steps`."""
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
        """The curve of a column as lists `step` and `value` of at most `MOST_POINTS`; None if it holds no number."""
        steps, values = np.array(self._steps), np.array(self._columns[name])
        finite = np.isfinite(values)
        if not finite.any():
            return None
        indices = thin_curve(values[finite], MOST_POINTS)
        return {"step": steps[finite][indices].tolist(), "value": values[finite][indices].tolist()}


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
