"""SIGTERM as a request to save a checkpoint and exit."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Context whose `received` turns true at the first SIGTERM; the second one ends the process as usual.

    Outside the main thread (a Ray worker trains in another one) signals cannot be handled, and none is.
    """

    def __init__(self) -> None:
        self.received = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSignal":
        if self._in_main_thread:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
