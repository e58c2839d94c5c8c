"""The supervision log of a run, `supervision.jsonl`: restarts, hangs and evaluations, read together with the run's events."""

from typing import Any

from filelock import FileLock

from .events import EventLog
from .folder import RunFolder


def record_event(run: RunFolder, kind: str, **fields: Any) -> None:
    """Append one event under a lock, since supervisor, driver and Ray's controller, on one machine, all write."""
    with FileLock(run.path / ".supervision.lock"), EventLog(run.supervision_file) as log:
        log.write(kind, **fields)
