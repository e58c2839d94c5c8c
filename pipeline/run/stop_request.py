"""Requests to a run's workers, as files in the run folder: to save a checkpoint, or to save one and exit.

Signals reach the processes of one machine only; this reaches every worker, wherever it runs. The file exists from the start
of the work on: a network file system notices a change of a file that is read again sooner than a file that is new.
"""

import contextlib
import threading
import uuid

from ...models.common.durations import duration_seconds
from ...models.common.files import write_text
from ..config import RunConfig
from .folder import RunFolder

POLL_SECONDS = 0.5


def clear_stop_request(run: RunFolder) -> None:
    """Remove an earlier request; called by the process that starts the workers, the only one that makes stop requests for them."""
    run.heartbeats.mkdir(parents=True, exist_ok=True)
    write_text(run.stop_file, "")


def request_stop(run: RunFolder, reason: str) -> None:
    """Ask the run's workers to save a checkpoint and exit; `reason` is recorded, such as "SIGTERM"."""
    write_text(run.stop_file, reason + "\n")


def stop_reason(run: RunFolder) -> str:
    """The reason of the request; empty if there is none."""
    try:
        return run.stop_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def request_checkpoint(run: RunFolder) -> None:
    """Ask the run's workers to save a checkpoint after their current step."""
    write_text(run.checkpoint_request_file, f"{uuid.uuid4().hex}\n")


def checkpoint_request(run: RunFolder) -> str:
    """The token of the last request for a checkpoint; empty if there is none."""
    try:
        return run.checkpoint_request_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class TimeLimit:
    """Context that asks the run's workers to save and exit when `config.run.time_limit` is over; does nothing without a limit."""

    def __init__(self, run: RunFolder, config: RunConfig):
        self._run, self._limit = run, config.run.time_limit
        self._ended = threading.Event()

    def __enter__(self) -> "TimeLimit":
        if self._limit is not None:
            threading.Thread(target=self._watch, args=(duration_seconds(self._limit),), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def _watch(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            return
        while True:  # the process that starts the workers clears earlier requests
            with contextlib.suppress(OSError):
                if self._run.stop_file.is_file() and not stop_reason(self._run):
                    request_stop(self._run, f"run.time_limit={self._limit}")
            if self._ended.wait(POLL_SECONDS):
                return
