"""`echo-lm status`: a table of runs in the terminal."""

import contextlib
import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...evals.layout import stored_config
from ...models.common.cached_files import stamp, subfolders
from ...models.common.errors import UserError
from ...models.common.run_layout import CONFIG
from ...pipeline.run.events import EventReader
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.goodput import Goodput
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import text
from ..progress.bars import console
from .summary import RunSummary, summarize

WATCH_SECONDS = 2.0
TROUBLE = ("lost", "hang", "straggler", "rollback", "evaluation_failed")
SHOWN_TROUBLE = 3  # the newest of each run
TAIL_BYTES = 1 << 15  # of each log, some 100 steps


def find_runs(paths: list[Path], runs: Path) -> list[RunFolder]:
    """The run folders at `paths`, or all below `runs`; their contents are not looked at.

    Raises:
        UserError: a path is no run folder, or there are none.
    """
    for path in paths:
        if stamp(path / CONFIG) is None:
            stored_config(path)  # raises
    folders = [RunFolder(path) for path in paths or subfolders(runs) if stamp(path / CONFIG) is not None]
    if not folders:
        raise UserError(f"there are no runs below {runs}: start one with `echo-lm run quickstart`, or name --runs")
    return folders


class Status:
    """The output of `echo-lm status`; each `table` reads only what was added to the runs since the last one."""

    def __init__(self) -> None:
        self._runs: dict[Path, tuple[RunReader, Trouble]] = {}

    def table(self, runs: list[RunFolder]) -> Group:
        """A table of the runs, and lines about their sources and newest troubles."""
        known = self._runs
        self._runs = {run.path: known.get(run.path) or (RunReader(run.path), Trouble(run)) for run in runs}
        rows = []
        for reader, trouble in self._runs.values():
            lines = trouble.lines()
            rows.append((summarize(reader, time.time()), lines, trouble.goodput.share))
        return _table(rows)


def _table(runs: list[tuple[RunSummary, list[str], float | None]]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("run", "state", "step", "loss", "tokens/s", "MFU", "goodput", "ETA", "checkpoint", "evaluations", "nodes")
    branched = any(summary.parent for summary, *_ in runs)
    for title in (*titles, *(["begins from"] if branched else [])):
        left = title in ("run", "state", "checkpoint", "evaluations", "nodes", "begins from")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    trouble, lines = [], []
    for summary, troubles, goodput in runs:
        failed = f", {summary.failed} failed" if summary.failed else ""
        cells = (
            summary.name,
            summary.state,
            f"{summary.step}/{summary.steps}",
            "-" if summary.loss is None else f"{summary.loss:.3f}",
            "-" if summary.tokens_per_second is None else f"{summary.tokens_per_second:,.0f}",
            "-" if summary.mfu is None else f"{summary.mfu:.1%}",
            "-" if goodput is None else f"{goodput:.0%}",
            "-" if summary.eta_seconds is None else f"{summary.eta_seconds / 60:.1f} min",
            "-" if summary.checkpoint is None else str(summary.checkpoint),
            f"{summary.done}/{summary.done + summary.pending + summary.failed}{failed}",
            _nodes(summary.nodes),
            *([summary.parent] if branched else []),
        )
        lines.append([" ".join(cell.split()) for cell in cells])
        about = (_sources(summary), *troubles, summary.problem)
        trouble += [Text(f"{summary.name}: {line}", style="dim") for line in about if line]
    # All runs in one row of the table, each cell with a line for each: rich takes four times as long for a row a run.
    table.add_row(*(Text("\n".join(column)) for column in zip(*lines, strict=True)))
    return Group(table, *trouble)


def _sources(summary: RunSummary) -> str:
    """A line about the text sources, where there are several or one is read again: `text: web 0.31 epochs, loss 3.214; ...`."""
    sources = summary.sources
    if len(sources) < 2 and not any(epochs > 1 for _, epochs, _ in sources):
        return ""
    parts = (f"{name} {epochs:.2f} epochs" + (f", loss {loss:.3f}" if loss else "") for name, epochs, loss in sources)
    return f"text: {'; '.join(parts)}"


def watch(paths: list[Path], runs: Path) -> None:
    """Show the table, updated from the files, until interrupted; outside a terminal print it every `WATCH_SECONDS`."""
    status = Status()
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            while True:
                console.print(status.table(find_runs(paths, runs)))
                time.sleep(WATCH_SECONDS)
        with Live(status.table(find_runs(paths, runs)), console=console, auto_refresh=False) as live:
            while True:
                live.update(status.table(find_runs(paths, runs)), refresh=True)
                time.sleep(WATCH_SECONDS)


def _nodes(nodes: tuple[tuple[str, int], ...]) -> str:
    """The nodes as text, `node-a, node-b x4`; above four nodes only their number."""
    if len(nodes) > 4:
        return f"{len(nodes)} ({sum(workers for _, workers in nodes)} workers)"
    return ", ".join(name if workers == 1 else f"{name} x{workers}" for name, workers in nodes) or "-"


class Trouble:
    """The newest events in `TROUBLE` of a run, and its goodput, as of the last `lines`.

    Of a long log the last `TAIL_BYTES` are read, and what is appended to them: a look costs the same, however long the run is.
    """

    def __init__(self, run: RunFolder):
        self._events = EventReader.of_any_run(run.path)
        self._events.start_at_end(TAIL_BYTES)
        self._newest: deque[dict[str, Any]] = deque(maxlen=SHOWN_TROUBLE)
        self.goodput = Goodput()

    def lines(self) -> list[str]:
        """A line for each, oldest first."""
        try:
            events = self._events.read(TAIL_BYTES)
        except OSError as error:
            return [f"its log cannot be read ({error.strerror})"]
        if self._events.restarted:
            self._newest.clear()
            self.goodput = Goodput()
        self.goodput.add(events)
        self._newest.extend(event for event in events if event["kind"] in TROUBLE)
        return [_describe(event) for event in self._newest]


def _describe(event: dict[str, Any]) -> str:
    timestamp = time.strftime("%d %b %H:%M:%S", time.localtime(event["time"]))
    labels = {
        "lost": f"lost a {text(event.get('what'))}",
        "evaluation_failed": f"evaluation {text(event.get('suite'))} given up",
    }
    message = text(event.get("message")) or text(event.get("reason"))
    return f"{timestamp} {labels.get(event['kind'], event['kind'])}: {message}"
