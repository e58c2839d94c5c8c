"""The events of a run in bounded memory, curves as columns of numbers; each call reads a bounded number of new bytes."""

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from ....pipeline.run.events import EventReader
from ....pipeline.run.goodput import Goodput
from ....pipeline.run.untrusted import number, text
from .points import AXES, Points

# Fields of a `step` event with a curve on the page; `goodput` is computed (`Goodput.share`).
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
    "goodput",
    "cpu_percent",
    "host_memory_percent",
    "process_gib",
    "gpu_percent",
    "gpu_memory_percent",
)
FIELDS = (*AXES, *COLUMNS)
GOODPUT = len(AXES) + COLUMNS.index("goodput")
MOST_STEPS = 10_000  # number of last steps that goodput can count as repeated after a restart
MOST_POINTS = 1500  # of a curve sent to the browser
SOURCE, HEALTH = "loss_by_source/", "health/"  # before the name of a text source, and of a measure of a SKA layer
MOST_SOURCES, MOST_OF_SOURCE = 12, 512  # with a curve of their losses, and buckets of each
MOST_MEASURES, MOST_MEASURED = 96, 256  # measures of SKA layers with a curve, and buckets of each
MOST_OTHERS = 1000  # events that are no steps, the newest
LOOK_BYTES = 1 << 20  # of each log at once
LOOK_SECONDS = 0.5


class History:
    """The events of one run, in bounded memory; used by several threads under its lock.

    A curve of up to 2,048 steps is kept as it is. Of a longer one, stretches of 2, 4, 8 ... steps keep the smallest and the
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
        self._points = Points(len(COLUMNS))
        self._goodput = Goodput(MOST_STEPS)
        self._sources: dict[str, Points] = {}
        self._measures: list[str] = []
        self._measured = Points(0)
        self.last_step: dict[str, Any] = {}
        self.others: deque[dict[str, Any]] = deque(maxlen=MOST_OTHERS)
        self.counts: dict[str, int] = {}
        self.first_start: dict[str, Any] | None = None
        self.health: dict[str, Any] | None = None
        self.problem: str | None = None

    def read(self, seconds: float = LOOK_SECONDS) -> None:
        """Read new events for about the given time; if a log was replaced, its events replace the earlier ones."""
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
        for event in events:
            kind = event["kind"]
            self._goodput.add([event])
            if not event.get("same_process"):  # otherwise the next stage of a start that is counted already
                self.counts[kind] = self.counts.get(kind, 0) + 1
            if kind == "step":
                row = [event.get(name) for name in FIELDS]
                row[GOODPUT] = self._goodput.share
                self._points.append(row)
                self.last_step = event
                self._add_sources(event)
                continue
            if kind == "health":
                self.health = event
                if event.get("step") is not None:
                    self._add_health(event)
                continue
            self.others.append(event)
            if kind == "start":
                event["attempt"] = self.counts.get(kind, 1)
                self.first_start = self.first_start or event
            if kind in ("start", "rollback"):
                for points in (self._points, self._measured, *self._sources.values()):
                    points.drop_after(event.get("step", 0))

    def _add_sources(self, event: dict[str, Any]) -> None:
        for name, loss in (event.get("loss_by_source") or {}).items():
            if name in self._sources or len(self._sources) < MOST_SOURCES:
                self._sources.setdefault(name, Points(1, MOST_OF_SOURCE)).append(
                    [*(event.get(axis) for axis in AXES), loss]
                )

    def _add_health(self, event: dict[str, Any]) -> None:
        """Add what was measured of the SKA layers, each measure of each layer a column."""
        values = measures_of(event)
        if self._measures != list(values):
            self._measures, self._measured = list(values), Points(len(values), MOST_MEASURED)
        self._measured.append([*(event.get(axis) for axis in AXES), *values.values()])

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds, oldest first."""
        return [event for event in self.others if event["kind"] in kinds]

    def curve(self, name: str, most: int = MOST_POINTS) -> dict[str, list[float | None]] | None:
        """A curve as lists `step`, `tokens`, `time` and `value` of at most `most` points; None without a number.

        Args:
            name: one of `COLUMNS`, `loss_by_source/SOURCE`, or `health/MEASURE/LAYER`.
        """
        with self.lock:
            if name in COLUMNS:
                return self._points.curve(COLUMNS.index(name), most)
            if name.startswith(SOURCE):
                points = self._sources.get(name.removeprefix(SOURCE))
                return points.curve(0, most) if points else None
            if name in self._measures:
                return self._measured.curve(self._measures.index(name), most)
            return None

    @property
    def names(self) -> list[str]:
        """Names of the run's curves besides `COLUMNS`: losses by source, and measures of SKA layers."""
        with self.lock:
            return [f"{SOURCE}{name}" for name in self._sources] + self._measures


def measures_of(event: dict[str, Any]) -> dict[str, float | None]:
    """The measures of a `health` event as `health/MEASURE/LAYER`; the first 96, those that are no numbers as None."""
    found: dict[str, float | None] = {}
    layers = event.get("layers")
    for position, layer in enumerate(layers[:MOST_MEASURES] if isinstance(layers, list) else ()):
        if isinstance(layer, dict):
            name = text(layer.get("layer"), 20) or str(position)
            measures = (key for key in list(layer)[:20] if key != "layer")
            found |= {f"{HEALTH}{text(key, 80)}/{name}": number(layer[key]) for key in measures}
    return dict(list(found.items())[:MOST_MEASURES])
