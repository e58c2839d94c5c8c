"""Heartbeats of the ranks of a worker group, as files: which process, on which node, at which step.

Each rank has a file in `heartbeats/` of the run folder, which a thread of the rank rewrites every second. A process that is
stopped, or whose machine is down, writes no more; one whose training thread is stuck goes on writing the same step.

The files also fence off old worker groups. A worker group is identified by a token, and a process that reads another group's
token in the folder exits: Ray or a partitioned network may leave the processes of an old group alive for minutes, and two
groups must not write one run.
"""

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from ...models.common.cached_files import read_regular, stamp
from ...models.common.files import write_text
from ...models.common.renamed_keys import with_new_keys
from ..run.folder import RunFolder
from ..run.stop_request import checkpoint_request, stop_reason
from .node import node_name

WORKER_GROUP_VARIABLE = "ECHO_LM_WORKER_GROUP"
HEARTBEAT_SECONDS = 1.0
MOST_RECORD_BYTES = 1 << 16
FENCED = 75  # exit code of a process whose worker group was replaced


@dataclass(frozen=True)
class HeartbeatRecord:
    """One rank's heartbeat.

    Attributes:
        worker_group: token of its worker group; "" outside of one.
        step: the last step done; None before the first.
        time: unix seconds by the clock of its node.
        where: the innermost function of the training thread, with file and line.
    """

    worker_group: str
    rank: int
    world: int
    node: str
    pid: int
    step: int | None
    time: float
    where: str

    @property
    def waiting(self) -> bool:
        """Whether the training thread is inside a collective, waiting for others."""
        return "distributed" in self.where


def start_worker_group(run: RunFolder, group: str) -> None:
    """Make `group` the run's only worker group: processes of earlier groups exit, and their heartbeats are removed."""
    write_text(run.worker_group_file, group + "\n")
    for path in run.heartbeats.glob("rank_*.json"):
        path.unlink(missing_ok=True)


class Heartbeat:
    """Writes this rank's heartbeat every second, in a thread, for the length of a `with` block."""

    def __init__(self, run: RunFolder, rank: int, world: int):
        self._run, self._rank, self._world = run, rank, world
        self._group = os.environ.get(WORKER_GROUP_VARIABLE, "")
        self._step: int | None = None
        self._stop_reason = ""
        self._checkpoint_request = checkpoint_request(run)  # requests from before the start are not carried out
        self._answered = self._checkpoint_request
        self._training_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._run.heartbeats.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def record_step(self, step: int) -> None:
        """Report in the heartbeats that `step` is done; called by the training thread."""
        self._step = step

    @property
    def stop_reason(self) -> str:
        """The reason of a pending request to save a checkpoint and exit, as of the last heartbeat; empty if there is none."""
        return self._stop_reason

    def checkpoint_requested(self) -> bool:
        """Whether a checkpoint was requested since the last call that returned True."""
        requested, self._answered = self._checkpoint_request != self._answered, self._checkpoint_request
        return requested

    def replaced(self) -> bool:
        """Whether another worker group has taken over the run."""
        try:
            return bool(self._group) and self._run.worker_group_file.read_text(encoding="utf-8").strip() != self._group
        except OSError:
            return False

    def _loop(self) -> None:
        path = heartbeat_file(self._run, self._rank)
        while True:
            self._stop_reason = stop_reason(self._run)
            self._checkpoint_request = checkpoint_request(self._run)
            if self.replaced():
                os._exit(FENCED)  # a training thread stuck in a collective can be ended in no other way
            with contextlib.suppress(OSError):  # a shared disk that is briefly unavailable
                _write(path, self._record())
                if (
                    self.replaced()
                ):  # replaced since the check above: the new group may have removed old heartbeats before this write
                    path.unlink(missing_ok=True)  # a rank of the new group that wrote here meanwhile writes again
                    os._exit(FENCED)
            if self._stopped.wait(HEARTBEAT_SECONDS):
                return

    def _record(self) -> HeartbeatRecord:
        where = _innermost(sys._current_frames().get(self._training_thread))
        return HeartbeatRecord(
            self._group, self._rank, self._world, node_name(), os.getpid(), self._step, time.time(), where
        )


def heartbeat_file(run: RunFolder, rank: int) -> Path:
    """The file of a rank's heartbeat; its modification time is by the clock of the file system."""
    return run.heartbeats / f"rank_{rank:05d}.json"


def read_heartbeats(run: RunFolder) -> list[HeartbeatRecord]:
    """The last heartbeat of every rank, by rank; empty if nothing was trained. Old spellings of keys are read."""
    heartbeats = []
    for path in sorted(run.heartbeats.glob("rank_*.json")):
        try:
            record = HeartbeatRecord(**with_new_keys("heartbeat", json.loads(read_regular(path, MOST_RECORD_BYTES))))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue  # being replaced at this moment, or damaged
        if isinstance(record.rank, int) and isinstance(record.node, str):
            heartbeats.append(record)
    return heartbeats


def heartbeat_times(run: RunFolder) -> list[tuple[str, float]]:
    """Node and time (unix seconds, by the file system's clock) of every rank's last heartbeat."""
    stamps = ((heartbeat.node, stamp(heartbeat_file(run, heartbeat.rank))) for heartbeat in read_heartbeats(run))
    return [(node, written[0] / 1e9) for node, written in stamps if written]


def _innermost(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{frame.f_lineno} {code.co_name}"


def _write(path: Path, heartbeat: HeartbeatRecord) -> None:
    """Write a heartbeat to a temporary file and rename it, without a flush: after a power cut heartbeats are useless."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(asdict(heartbeat)), encoding="utf-8")
    os.replace(aside, path)
