"""A request to a run's workers to save a checkpoint and leave, as a file in the run folder.

Signals reach the processes of one machine only; this reaches every worker, wherever it runs. The file exists from the start
of the work on: a network file system notices a change of a file that is read again sooner than a file that is new.
"""

from ...models.common.files import write_text
from .folder import RunFolder


def clear_stop_request(run: RunFolder) -> None:
    """Forget an earlier request; called by whoever starts the workers, and who alone may request it then."""
    run.heartbeats.mkdir(parents=True, exist_ok=True)
    write_text(run.stop_file, "")


def request_stop(run: RunFolder, reason: str) -> None:
    """Ask the run's workers to save a checkpoint and leave; `reason` is recorded, such as "SIGTERM"."""
    write_text(run.stop_file, reason + "\n")


def stop_reason(run: RunFolder) -> str:
    """The reason of the request; empty if there is none."""
    try:
        return run.stop_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
