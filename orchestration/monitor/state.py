"""The state of a run, derived from its files."""

from typing import Any

# Every process of a worker group renews its file in `heartbeats/` about once a second; after so long a silence it is dead.
HEARTBEAT_SILENT_SECONDS = 30.0
# Without heartbeats, a run is dead after a silence of its log of so long, and of so many times the duration of its steps.
SILENT_SECONDS, SILENT_STEPS = 120.0, 10.0
ORDER = ("running", "crashed", "damaged", "stopped", "waiting", "finished")


def run_state(
    events: list[dict[str, Any]],
    *,
    finished: bool,
    error: bool,
    reached_stop: bool,
    heartbeat: float | None,
    now: float,
) -> str:
    """The state of a run, one of `ORDER`; `damaged`, for files that cannot be read, is for the caller to see.

    - finished: training reached its horizon;
    - stopped: it ended cleanly before, at a signal or at `run.stop_step`;
    - crashed: it recorded an error, or it has been silent for too long;
    - waiting: set up, not trained yet;
    - running: anything else.

    Args:
        events: the last events of its log, oldest first.
        finished: whether `finished.json` exists.
        error: whether `error.json` exists and is newer than the last event.
        reached_stop: whether its last complete checkpoint is that of `run.stop_step`.
        heartbeat: last heartbeat of its processes in unix seconds; None without any.
        now: unix seconds.
    """
    if finished:
        return "finished"
    if error:
        return "crashed"
    last = events[-1] if events else None
    alive = heartbeat is not None and now - heartbeat < HEARTBEAT_SILENT_SECONDS
    if last is None:
        return "running" if alive else "waiting" if heartbeat is None else "crashed"
    if last["kind"] == "stop" or (not alive and reached_stop and last["kind"] != "start"):
        return "stopped"
    if heartbeat is None:
        alive = now - last["time"] < silence_seconds(events)
    return "running" if alive else "crashed"


def silence_seconds(events: list[dict[str, Any]]) -> float:
    """Seconds without an event after which a run without heartbeats counts as dead."""
    times = [event["time"] for event in events if event["kind"] == "step"]
    pace = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return max(SILENT_SECONDS, SILENT_STEPS * pace)
