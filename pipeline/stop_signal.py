"""SIGTERM as a request to save and leave."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Use as a context: `received` turns true at the first SIGTERM; the second one ends the process as usual.

    Outside the main thread (a Ray worker trains in another) no signal can be caught, and none is.
    """

    def __init__(self) -> None:
        self.received = False
        self._catch = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSignal":
        if self._catch:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._catch:
            signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
