"""What those who watch over a run tell: `supervision.jsonl`, beside the run's own events and read together with them."""

from typing import Any

from filelock import FileLock

from ...models.common.run_layout import SUPERVISION
from .events import EventLog
from .folder import RunFolder


def record_event(run: RunFolder, kind: str, **fields: Any) -> None:
    """Append one event. Supervisor, driver and Ray's controller all write, on one machine: one at a time."""
    with FileLock(run.path / ".supervision.lock"), EventLog(run.path / SUPERVISION) as log:
        log.write(kind, **fields)
