"""Progress of long work: a live bar with rate and ETA in a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# In a file or a pipe lines are not cut at the 80 columns that rich would assume.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


class Stage:
    """The progress of one long stage with a known total."""

    def __init__(self, title: str, total: int, unit: str, done: int, bar: Progress | None, every_seconds: float):
        self._title, self._total, self._unit, self._bar = title, total, unit, bar
        self._started, self._first = time.monotonic(), done
        self._every, self._printed, self._complete = every_seconds, float("-inf"), False
        self._task = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show that `done` of the total are done, followed by `note` (for example the loss)."""
        self._total = total or self._total
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=note, total=self._total)
            return
        now, complete = time.monotonic(), done >= self._total
        if now - self._printed < self._every and (not complete or self._complete):
            return
        self._printed, self._complete = now, complete
        rate = (done - self._first) / max(now - self._started, 1e-9)
        pace = ""
        if rate > 0:
            remaining = f", {(self._total - done) / rate:.0f} s left" if done < self._total else ""
            pace = f" ({rate:.3g}/s{remaining})"
        console.print(f"{self._title}: {done}/{self._total} {self._unit}{pace} {note}".rstrip())


@contextmanager
def stage(title: str, total: int, unit: str, done: int = 0, every_seconds: float = 10) -> Iterator[Stage]:
    """Context with the progress display of one long stage, of which `done` was finished by an earlier attempt."""
    if console.is_terminal:
        columns = [
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=console) as bar:
            yield Stage(title, total, unit, done, bar, every_seconds)
    else:
        yield Stage(title, total, unit, done, None, every_seconds)
