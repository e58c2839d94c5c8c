"""The table of runs: read when something changed, and able to say which rows changed since a browser last asked."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..monitor.cached_files import Stamp, stamp
from ..monitor.state import ORDER
from ..monitor.summary import RunReading, RunSummary, read_run, signature, subfolders

# Between two looks at the files, however many browsers ask.
LOOK_SECONDS = 1.0


@dataclass
class _Kept:
    signature: tuple[Stamp, ...]
    reading: RunReading
    summary: RunSummary
    version: int


@dataclass(frozen=True)
class Changes:
    """What changed since a version: rows that are new or other, names that are gone, and the version now."""

    version: str
    changed: list[RunSummary]
    gone: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class RunTable:
    """The runs below a folder, each a folder with a `config.yaml`."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._gone: dict[str, int] = {}
        self._version, self._epoch, self._looked = 0, uuid.uuid4().hex[:8], float("-inf")

    def rows(self) -> tuple[str, list[RunSummary]]:
        """The version, and all runs: running ones first, then by the last sign of life."""
        with self._lock:
            self._look()
            summaries = [kept.summary for kept in self._kept.values()]
            return self._token(), sorted(summaries, key=lambda row: (ORDER.index(row.state), -row.updated))

    def row(self, name: str) -> RunSummary | None:
        """The run of that name, or None."""
        with self._lock:
            self._look()
            kept = self._kept.get(name)
            return kept.summary if kept else None

    def changes(self, since: str) -> Changes | None:
        """What changed since a version that this table gave out; None if it is not one of this table's."""
        epoch, _, number = since.partition("-")
        if epoch != self._epoch or not number.isdigit():
            return None
        with self._lock:
            self._look()
            changed = [kept.summary for kept in self._kept.values() if kept.version > int(number)]
            gone = [name for name, version in self._gone.items() if version > int(number)]
            return Changes(self._token(), changed, gone, self._counts())

    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        with self._lock:
            self._look()
            return self._counts()

    def _counts(self) -> dict[str, int]:
        states = [kept.summary.state for kept in self._kept.values()]
        return {state: states.count(state) for state in ORDER}

    def _token(self) -> str:
        return f"{self._epoch}-{self._version}"

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        now, version = self._clock(), self._version + 1
        seen = set()
        for folder in subfolders(self.folder):
            kept, new = self._kept.get(folder.name), signature(folder)
            if new[0] is None:  # no config.yaml: not a run
                continue
            seen.add(folder.name)
            reading = kept.reading if kept and kept.signature == new else read_run(folder)
            summary = reading.summary(now)
            if kept is None or kept.summary != summary:
                self._kept[folder.name] = _Kept(new, reading, summary, version)
                self._gone.pop(folder.name, None)
                self._version = version
            else:
                kept.signature, kept.reading = new, reading
        for name in set(self._kept) - seen:
            del self._kept[name]
            self._gone[name] = self._version = version
        self._looked = time.monotonic()


def is_folder_of_runs(folder: Path) -> bool:
    """Whether there is such a folder; it may still be empty."""
    return stamp(folder) is not None and folder.is_dir()
