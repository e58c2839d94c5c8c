"""The table of runs: rows are read again when their files change, with versions for incremental updates of a page."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...models.common.cached_files import Stamp, subfolders
from ...pipeline.run.reader import RunReader
from ..monitor.state import ORDER
from ..monitor.summary import RunSnapshot, RunSummary, read_run

# Between two scans of the files, however many browsers send requests.
REFRESH_SECONDS = 1.0


@dataclass
class _CachedRun:
    reader: RunReader
    stamps: tuple[Stamp, ...]
    snapshot: RunSnapshot
    summary: RunSummary
    version: int


@dataclass(frozen=True)
class Changes:
    """Changes since a version: new or changed rows, names of removed runs, and the current version."""

    version: str
    changed: list[RunSummary]
    removed: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class RunTable:
    """The runs below a folder, each a folder with a `config.yaml`."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._cache: dict[str, _CachedRun] = {}
        self._removed: dict[str, int] = {}
        self._version, self._epoch, self._refreshed_at = 0, uuid.uuid4().hex[:8], float("-inf")

    def rows(self) -> tuple[str, list[RunSummary]]:
        """The version, and all runs: ordered by state, running ones first, then by their last event."""
        with self._lock:
            self._refresh()
            summaries = [cached.summary for cached in self._cache.values()]
            return self._token(), sorted(summaries, key=lambda row: (ORDER.index(row.state), -row.updated))

    def row(self, name: str) -> RunSummary | None:
        """The run of that name, or None."""
        with self._lock:
            self._refresh()
            cached = self._cache.get(name)
            return cached.summary if cached else None

    def changes(self, since: str) -> Changes | None:
        """The changes since `since`, a version of this table; None if it is no version of this table."""
        epoch, _, number = since.partition("-")
        if epoch != self._epoch or not number.isdigit():
            return None
        with self._lock:
            self._refresh()
            changed = [cached.summary for cached in self._cache.values() if cached.version > int(number)]
            removed = [name for name, version in self._removed.items() if version > int(number)]
            return Changes(self._token(), changed, removed, self._counts())

    def counts(self) -> dict[str, int]:
        """The number of runs in each state."""
        with self._lock:
            self._refresh()
            return self._counts()

    def _counts(self) -> dict[str, int]:
        states = [cached.summary.state for cached in self._cache.values()]
        return {state: states.count(state) for state in ORDER}

    def _token(self) -> str:
        return f"{self._epoch}-{self._version}"

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        now, version = self._clock(), self._version + 1
        present = set()
        for folder in subfolders(self.folder):
            cached = self._cache.get(folder.name)
            reader = cached.reader if cached else RunReader(folder)
            current = reader.stamps()
            if current[0] is None:  # no config.yaml: not a run
                continue
            present.add(folder.name)
            snapshot = cached.snapshot if cached and cached.stamps == current else read_run(reader)
            summary = snapshot.summary(now)
            if cached is None or cached.summary != summary:
                self._cache[folder.name] = _CachedRun(reader, current, snapshot, summary, version)
                self._removed.pop(folder.name, None)
                self._version = version
            else:
                cached.stamps, cached.snapshot = current, snapshot
        for name in set(self._cache) - present:
            del self._cache[name]
            self._removed[name] = self._version = version
        self._refreshed_at = time.monotonic()
