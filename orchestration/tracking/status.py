"""The status of a run in MLflow's words: RUNNING, FINISHED (its horizon), KILLED (stopped before it), FAILED (a crash)."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...evals.layout import complete_checkpoints, stored_config
from ...models.common.cached_files import stamp
from ...pipeline.monitoring.heartbeat import HeartbeatRecord, heartbeat_file, read_heartbeats
from ...pipeline.monitoring.node import node_name
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.reader import RunReader

# A rank renews its heartbeat every second; a run without heartbeats is dead after a silence of its log of so long.
HEARTBEAT_SILENT_SECONDS, SILENT_SECONDS = 30.0, 120.0


class RunStatus:
    """The status of a run by its events so far, and by whether its processes live."""

    def __init__(self) -> None:
        self._mark = self._last = {}

    def add(self, events: Iterable[dict[str, Any]]) -> None:
        """Take the next events of the run's log."""
        for event in events:
            self._last = event
            if event["kind"] in ("start", "stop", "finish"):
                self._mark = event

    @property
    def finished(self) -> bool:
        """Whether training reached its horizon and was not started again."""
        return self._mark.get("kind") == "finish"

    def now(self, run_folder: Path, alive: bool | None) -> tuple[str, float | None] | None:
        """The status and, unless the run goes on, the time of its end (unix seconds); None before the first start.

        Args:
            alive: whether processes of the run live; None to judge it from their heartbeats.
        """
        kind, ended = self._mark.get("kind"), self._last.get("time", 0.0)
        if kind is None:
            return None
        if kind == "finish":
            return "FINISHED", self._mark["time"]
        if kind == "stop":
            return "KILLED", self._mark["time"]
        if alive is None:
            alive = self._seems_alive(run_folder)
        if alive:
            return "RUNNING", None
        return ("KILLED" if self._reached_stop(run_folder) else "FAILED"), ended

    def _seems_alive(self, run_folder: Path) -> bool:
        ended = self._last["time"]
        if RunReader(run_folder).error_since(ended) is not None:
            return False
        run = RunFolder(run_folder)
        heartbeats = read_heartbeats(run)
        if heartbeats:
            return any(_lives(run, heartbeat) for heartbeat in heartbeats)
        return time.time() - ended < SILENT_SECONDS

    def _reached_stop(self, run_folder: Path) -> bool:
        """Whether the last checkpoint is that of `run.stop_step`, at which training ends without an event."""
        stop_step = (stored_config(run_folder).get("run") or {}).get("stop_step")
        steps = [record["step"] for _, record in complete_checkpoints(run_folder)]
        return bool(steps) and self._last["kind"] != "start" and stop_step == steps[-1]


def _lives(run: RunFolder, heartbeat: HeartbeatRecord) -> bool:
    """Whether a rank is alive: it renewed its heartbeat a moment ago and, if it ran on this machine, its process exists."""
    written = stamp(heartbeat_file(run, heartbeat.rank))
    if written is None or time.time() - written[0] / 1e9 > HEARTBEAT_SILENT_SECONDS:
        return False
    if heartbeat.node != node_name():
        return True
    try:
        os.kill(heartbeat.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True
