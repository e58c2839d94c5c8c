"""Handling of SIGTERM, and of SIGUSR1 (sent by batch systems before the time limit), as requests to save a checkpoint and exit."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_SECONDS = 5.0  # signals so soon after the first one are the same request


class StopSignal:
    """Context whose `received` turns true at the first such signal; a later one ends the process as usual.

    A batch system may signal every process of a job, and those that pass the signal on do so besides: what follows the first
    one within seconds is ignored.

    Outside the main thread (a Ray worker trains in another one) signals cannot be handled, and none is.

    Attributes:
        reason: name of the signal; empty before.
    """

    def __init__(self, *, later_ends: bool = True) -> None:
        """With `later_ends` False later signals are ignored too: for processes that end with the one that started them."""
        self.reason, self._first_at, self._later_ends = "", 0.0, later_ends
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    @property
    def received(self) -> bool:
        """Whether a signal arrived."""
        return bool(self.reason)

    def __enter__(self) -> "StopSignal":
        if self._in_main_thread:
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_main_thread:
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.reason:
            self.reason, self._first_at = signal.Signals(number).name, now
        elif self._later_ends and now - self._first_at > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
