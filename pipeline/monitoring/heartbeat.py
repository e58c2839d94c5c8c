"""Signs of life of a gang's processes, as files: who they are, where they run, how far they are.

Each rank has a file in `heartbeats/` of the run folder, which a thread of its own rewrites every second or so. A process
that is stopped or whose machine is gone falls silent; one whose training thread is stuck goes on beating at the same step.
The files also fence: a gang is known by a token, and a process that finds another gang's token in the folder ends itself.
Ray or a partitioned network may leave an old gang's processes alive for minutes, and two gangs must not write one run.
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

from ...models.common.files import write_text
from ..run.folder import RunFolder
from .node import node_name

GANG_VARIABLE = "ECHO_LM_GANG"
BEAT_SECONDS = 1.0
FENCED = 75  # exit code of a process whose gang was replaced


@dataclass(frozen=True)
class Beat:
    """One rank's sign of life. `step` is None before its first step, `time` in unix seconds by its own clock.

    Attributes:
        where: the innermost function of the training thread, with file and line.
    """

    gang: str
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


def start_gang(run: RunFolder, gang: str) -> None:
    """Make `gang` the run's only one: processes of earlier ones end themselves, their beats are forgotten."""
    write_text(run.gang_file, gang + "\n")
    for path in run.heartbeats.glob("rank_*.json"):
        path.unlink(missing_ok=True)


class Heart:
    """Beats for this rank until it is closed. Use as a context."""

    def __init__(self, run: RunFolder, rank: int, world: int):
        self._run, self._rank, self._world = run, rank, world
        self._gang = os.environ.get(GANG_VARIABLE, "")
        self._step: int | None = None
        self._training = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heart", daemon=True)

    def __enter__(self) -> "Heart":
        self._run.heartbeats.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def moved(self, step: int) -> None:
        """The training thread has made `step`."""
        self._step = step

    def replaced(self) -> bool:
        """Whether another gang has taken over the run."""
        try:
            return bool(self._gang) and self._run.gang_file.read_text(encoding="utf-8").strip() != self._gang
        except OSError:
            return False

    def _loop(self) -> None:
        path = beat_file(self._run, self._rank)
        while True:
            if self.replaced():
                os._exit(FENCED)  # the training thread may be stuck in a collective: nothing gentler ends it
            with contextlib.suppress(OSError):  # a shared disk that is away for a moment
                _write(path, self._beat())
                if self.replaced():  # since the look above: the new gang may have removed the old beats before this one
                    path.unlink(missing_ok=True)  # if it is a beat of the new gang by now, the next one follows
                    os._exit(FENCED)
            if self._stopped.wait(BEAT_SECONDS):
                return

    def _beat(self) -> Beat:
        where = _innermost(sys._current_frames().get(self._training))
        return Beat(self._gang, self._rank, self._world, node_name(), os.getpid(), self._step, time.time(), where)


def beat_file(run: RunFolder, rank: int) -> Path:
    """Where a rank leaves its sign of life; the time of the file is that by the file system's clock."""
    return run.heartbeats / f"rank_{rank:05d}.json"


def read_beats(run: RunFolder) -> list[Beat]:
    """The last beat of every rank, by rank; none if nothing trains or ever did."""
    beats = []
    for path in sorted(run.heartbeats.glob("rank_*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # being replaced at this moment
    return beats


def _innermost(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])}:{frame.f_lineno} {code.co_name}"


def _write(path: Path, beat: Beat) -> None:
    """Aside and renamed, but not flushed to the disk: a beat that a power cut loses is of no use after it."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(asdict(beat)), encoding="utf-8")
    os.replace(aside, path)
