"""SIGTERM, or SIGUSR1 as batch systems send it before the time is up, as a request to save a checkpoint and exit."""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Context whose `received` turns true at the first such signal; the second one ends the process as usual.

    Outside the main thread (a Ray worker trains in another one) signals cannot be handled, and none is.

    Attributes:
        reason: name of the signal; empty before.
    """

    def __init__(self) -> None:
        self.reason = ""
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
        self.reason = signal.Signals(number).name
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
