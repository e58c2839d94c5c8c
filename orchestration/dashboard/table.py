"""The table of runs: rows are read again when their files change, with versions for incremental updates of a page."""

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...models.common.cached_files import Stamp, is_inside, stamp, subfolders
from ...models.common.run_layout import CONFIG, EVENTS
from ...pipeline.run.reader import RunReader
from ..monitor.state import ORDER
from ..monitor.summary import RunSnapshot, RunSummary, damaged, read_run, shown_name, unreadable

# Between two scans of the files, however many browsers send requests.
REFRESH_SECONDS = 1.0
# A run that is over and whose log did not grow is looked at in full once in so many scans.
SETTLED_SCANS = 10
SETTLED_SECONDS = 60.0


@dataclass
class _CachedRun:
    reader: RunReader
    stamps: tuple[Stamp, ...]
    snapshot: RunSnapshot | None
    summary: RunSummary
    version: int
    first: tuple[Stamp, Stamp]
    changed_at: float


@dataclass(frozen=True)
class Changes:
    """Changes since a version: new or changed rows, names of removed runs, and the current version."""

    version: str
    changed: list[RunSummary]
    removed: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class RunTable:
    """The runs below a folder, each a folder with a `config.yaml`; one lock lets several requests use it.

    A link to a run elsewhere is followed if it belongs to this user; one that somebody else made is a damaged row.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._cache: dict[str, _CachedRun] = {}
        self._removed: dict[str, int] = {}
        self._version, self._epoch, self._refreshed_at = 0, uuid.uuid4().hex[:8], float("-inf")
        self._scans = 0

    def rows(self) -> tuple[str, list[RunSummary]]:
        """The version, and all runs: ordered by state, running ones first, then by their last event."""
        with self._lock:
            self._refresh()
            summaries = [cached.summary for cached in self._cache.values()]
            return self._token(), sorted(summaries, key=lambda row: (ORDER.index(row.state), -row.updated))

    def row(self, name: str) -> RunSummary | None:
        """The run of that name, or None."""
        cached = self._find(name)
        return cached.summary if cached else None

    def is_readable(self, name: str) -> bool:
        """Whether the folder of a run may be read and could be."""
        cached = self._find(name)
        return cached is not None and cached.snapshot is not None

    def stamps(self, name: str) -> tuple[Stamp, ...]:
        """Stamps of the files of a run when it was last read; empty without such a run."""
        cached = self._find(name)
        return cached.stamps if cached else ()

    def changes(self, since: str) -> Changes | None:
        """The changes since `since`, a version of this table; None if it is no version of this table."""
        epoch, _, number = since.partition("-")
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        with self._lock:
            self._refresh()
            changed = [cached.summary for cached in self._cache.values() if cached.version > int(number)]
            removed = [shown_name(name) for name, version in self._removed.items() if version > int(number)]
            return Changes(self._token(), changed, removed, self._counts())

    def counts(self) -> dict[str, int]:
        """The number of runs in each state."""
        with self._lock:
            self._refresh()
            return self._counts()

    def _find(self, name: str) -> _CachedRun | None:
        with self._lock:
            self._refresh()
            return self._cache.get(name)

    def _counts(self) -> dict[str, int]:
        states = [cached.summary.state for cached in self._cache.values()]
        return {state: states.count(state) for state in ORDER}

    def _token(self) -> str:
        return f"{self._epoch}-{self._version}"

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        version, self._scans = self._version + 1, self._scans + 1
        present = set()
        for number, folder in enumerate(subfolders(self.folder)):
            first = (stamp(folder / CONFIG), stamp(folder / EVENTS))
            if first[0] is None:  # no config.yaml: not a run
                continue
            present.add(folder.name)
            self._look_at(folder, first, version, turn=(self._scans + number) % SETTLED_SCANS == 0)
        for name in set(self._cache) - present:
            del self._cache[name]
            self._removed[name] = self._version = version
        self._refreshed_at = time.monotonic()

    def _look_at(self, folder: Path, first: tuple[Stamp, Stamp], version: int, *, turn: bool) -> None:
        now, cached = self._clock(), self._cache.get(folder.name)
        if cached and not turn and cached.first == first and _is_settled(cached, now):
            return
        reader = cached.reader if cached else RunReader(folder)
        current = reader.stamps()
        if cached is None or cached.stamps != current:
            summary, snapshot = self._read(reader, now)
        elif cached.snapshot is None:
            summary, snapshot = cached.summary, None
        else:
            summary, snapshot = cached.snapshot.summary(now), cached.snapshot
        if cached is None or cached.summary != summary:
            self._removed.pop(folder.name, None)
            self._version = version
        else:
            version = cached.version
        changed_at = max((found[0] / 1e9 for found in current if found), default=now)
        self._cache[folder.name] = _CachedRun(reader, current, snapshot, summary, version, first, changed_at)

    def _read(self, reader: RunReader, now: float) -> tuple[RunSummary, RunSnapshot | None]:
        folder = reader.folder
        if shown_name(folder.name) != folder.name:
            return damaged(folder, "the name of its folder is not UTF-8: rename it to open it"), None
        if folder.is_symlink() and not is_inside(folder, self.folder) and folder.lstat().st_uid != os.geteuid():
            return damaged(folder, "it is a link of another user that leads out of the folder of runs"), None
        try:
            snapshot = read_run(reader)
            return snapshot.summary(now), snapshot
        except Exception as error:  # a folder with unforeseen contents must not hide the others
            return unreadable(folder, error), None


def _is_settled(run: _CachedRun, now: float) -> bool:
    """Whether a run is unlikely to change soon: it is over, and nothing changed in its folder for a while."""
    return run.summary.state != "running" and now - run.changed_at > SETTLED_SECONDS
