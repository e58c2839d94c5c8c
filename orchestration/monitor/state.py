"""In what state a run is, by what its files say."""

from typing import Any

# Every process of a worker group renews its file in `heartbeats/` about once a second; silent for so long, it is dead.
HEARTBEAT_SILENT_SECONDS = 30.0
# Without such files, the log must tell: silence of so long, and of so many of its own steps.
SILENT_SECONDS, SILENT_STEPS = 120.0, 10.0
ORDER = ("running", "crashed", "stopped", "waiting", "finished")


def run_state(
    events: list[dict[str, Any]],
    *,
    finished: bool,
    error: bool,
    reached_stop: bool,
    heartbeat: float | None,
    now: float,
) -> str:
    """One of `ORDER`.

    - finished: training reached its horizon;
    - stopped: it left cleanly before, at a signal or at `run.stop_step`;
    - crashed: it left an error, or it is silent for so long that it must be dead;
    - waiting: set up, nothing trained yet;
    - running: anything else.

    Args:
        events: the last ones of its log, oldest first.
        finished: whether `finished.json` is there.
        error: whether `error.json` is there and newer than the last event.
        reached_stop: whether its last complete checkpoint is that of `run.stop_step`.
        beat: last sign of life of its processes in unix seconds, if they leave any.
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
    if not alive and (last["kind"] == "stop" or (reached_stop and last["kind"] != "start")):
        return "stopped"
    if heartbeat is None:
        alive = now - last["time"] < silence_seconds(events)
    return "running" if alive else "crashed"


def silence_seconds(events: list[dict[str, Any]]) -> float:
    """How long a run without heartbeats may say nothing before it counts as dead."""
    times = [event["time"] for event in events if event["kind"] == "step"]
    pace = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return max(SILENT_SECONDS, SILENT_STEPS * pace)
