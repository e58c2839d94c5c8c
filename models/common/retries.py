"""The restart policy of all parts: growing pauses, and a limit on consecutive failures without progress."""

from collections.abc import Callable
from typing import Any

from tenacity import RetryCallState, Retrying, wait_exponential

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
PAUSES = wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)


def pause_seconds(failures: int) -> float:
    """Seconds to wait after a number of consecutive failures (1 or more): 1, 2, 4, ... up to a minute."""
    state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = failures
    return PAUSES(state)


class RestartLimit:
    """Allows restarts until `max_restarts` failures in a row without progress. The first restart is immediate.

    Args:
        progress: returns a value that differs from the last one where something was achieved meanwhile, such as the name of
            the newest checkpoint.
    """

    def __init__(self, max_restarts: int, progress: Callable[[], Any]):
        self._max, self._progress = max_restarts, progress
        self._last = progress()
        self.failures_in_a_row = 0

    def made_progress(self) -> bool:
        """Whether there was progress since the last call; if so, the count of failures restarts at zero."""
        current = self._progress()
        if current == self._last:
            return False
        self._last, self.failures_in_a_row = current, 0
        return True

    def after_failure(self) -> float | None:
        """Count a failure; the seconds to wait before the next start, or None if there were too many."""
        self.made_progress()
        self.failures_in_a_row += 1
        if self.failures_in_a_row > self._max:
            return None
        return 0.0 if self.failures_in_a_row == 1 else pause_seconds(self.failures_in_a_row - 1)
