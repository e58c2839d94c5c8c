"""Goodput: the productive, lost and waiting seconds of a run, computed from its events."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from .events import STARTUP_KINDS, SUPERVISION_KINDS


class Goodput:
    """Sums the seconds of a run by what they were used for; `add` takes its events in order, all at once or as they come.

    Attributes:
        productive: seconds of the steps that made the weights.
        lost: seconds of steps that were repeated after a crash or a rollback, and from a crash to the next start.
        waiting: seconds in which training stood still: from a start or a change to the first step, for data, for
            checkpoints.
        evaluating: seconds of evaluations, which run beside the training and are not part of the others.
    """

    def __init__(self, most_steps: int | None = None) -> None:
        """Begin with all sums at zero.

        Args:
            most_steps: how many of the last steps a crash or a rollback can take back; None for all, which takes memory for each.
        """
        # Number and seconds of each step that may still be repeated.
        self._steps: deque[tuple[int, float]] = deque(maxlen=most_steps)
        self.productive = 0.0
        self.lost = self.waiting = self.evaluating = 0.0
        self._tokens, self._last, self._started = 0, None, False

    @property
    def share(self) -> float | None:
        """The productive share of the time in which the run was meant to train, 0 to 1; None before its first step."""
        productive = self.productive
        return productive / (productive + self.lost + self.waiting) if productive > 0 else None

    def add(self, events: Iterable[dict[str, Any]]) -> None:
        """Add further events; the time between a clean stop and the next start is not counted."""
        for event in events:
            kind, last = event["kind"], self._last
            if kind == "evaluation":
                self.evaluating += event.get("seconds") or 0.0
            if kind in SUPERVISION_KINDS or kind in STARTUP_KINDS:
                continue
            if kind in ("start", "rollback"):
                position = event.get("step", 0)
                repeated = sum(seconds for step, seconds in self._steps if step > position)
                if repeated:
                    self._steps = deque(
                        (item for item in self._steps if item[0] <= position), maxlen=self._steps.maxlen
                    )
                    self.productive, self.lost = self.productive - repeated, self.lost + repeated
                self._tokens = self._tokens if event.get("tokens") is None else event["tokens"]
            if kind == "start":
                if last is not None and last["kind"] not in ("stop", "finish"):
                    seconds = max(0.0, event["time"] - last["time"])
                    if event.get("same_process"):
                        self.waiting += seconds
                    else:
                        self.lost += seconds
                self._started = True
            elif kind == "step":
                self._add_step(event, last)
            elif kind == "checkpoint":
                self.waiting += event.get("stall_seconds") or 0.0
            self._last = event

    def _add_step(self, event: dict[str, Any], last: dict[str, Any] | None) -> None:
        position = event.get("tokens")
        if position is None:  # an event of another writer may lack it
            position = self._tokens
        tokens, speed = position - self._tokens, event.get("tokens_per_second")
        seconds, self._tokens = tokens / speed if speed and tokens > 0 else 0.0, position
        if self._started and last is not None:
            self.waiting += max(0.0, event["time"] - last["time"] - seconds)
        self._started = False
        stall = min(seconds, event.get("data_stall_seconds") or 0.0)
        self.waiting += stall
        if self._steps and self._steps[-1][0] == event["step"]:  # recorded twice
            self.productive -= self._steps.pop()[1]
        self.productive += seconds - stall
        self._steps.append((event["step"], seconds - stall))
