"""Where runs stand, read from their files alone: it works with every cluster dead."""

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..evals.run import complete_checkpoints
from ..models.errors import UserError
from ..pipeline.config import RunConfig
from ..pipeline.events import read_events, steps
from ..pipeline.heartbeat import read_beats
from ..pipeline.run_folder import RunFolder
from .evaluation_jobs import missing_jobs, wanted_jobs
from .progress import console

STALE_SECONDS = 120
BEAT_STALE_SECONDS = 15
WATCH_SECONDS = 2.0
TROUBLE = ("lost", "hang", "straggler", "rollback", "evaluation_failed")
SHOWN_TROUBLE = 3  # the newest of each run


@dataclass(frozen=True)
class RunStatus:
    """One line of `echo-lm status`.

    Attributes:
        mfu: of the last step, None on devices without a known peak.
        nodes: name of each node that trains it now, with the number of its workers.
        trouble: the newest events that say what went wrong, oldest first.
    """

    name: str
    state: str  # finished, running, stopped, or waiting (set up, nothing trained yet)
    step: int
    steps: int
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    checkpoint: str
    evaluations_done: int
    evaluations_pending: int
    evaluations_failed: int
    mfu: float | None
    nodes: dict[str, int]
    trouble: list[dict[str, Any]]


def run_status(run: RunFolder) -> RunStatus:
    """Read the status of one run.

    Raises:
        UserError: not a run folder.
    """
    config = run.load_config()
    events = read_events(run.events_file)
    done_steps = steps(events)
    last = done_steps[-1] if done_steps else {}
    step = last.get("step", 0)
    rate = last.get("tokens_per_second")
    wanted, missing = wanted_jobs(run, config), missing_jobs(run, config)
    given_up = {(event["step"], event["suite"]) for event in events if event["kind"] == "evaluation_failed"}
    failed = sum((job.step, job.output.stem) in given_up for job in missing)
    nodes = Counter(beat.node for beat in read_beats(run) if time.time() - beat.time < BEAT_STALE_SECONDS)
    found = list(complete_checkpoints(run.path))
    return RunStatus(
        name=config.name,
        state=_state(run, last, bool(nodes)),
        step=step,
        steps=config.train.steps,
        loss=last.get("loss"),
        tokens_per_second=rate,
        eta_seconds=_eta(config, step, rate),
        checkpoint=found[-1][0].name if found else "-",
        evaluations_done=len(wanted) - len(missing),
        evaluations_pending=len(missing) - failed,
        evaluations_failed=failed,
        mfu=last.get("mfu"),
        nodes=dict(nodes),
        trouble=[event for event in events if event["kind"] in TROUBLE][-SHOWN_TROUBLE:],
    )


def find_runs(paths: list[Path], runs: Path) -> list[RunFolder]:
    """The run folders at `paths`, or all below `runs`.

    Raises:
        UserError: a path is no run folder, or there are none.
    """
    found = [RunFolder(path) for path in paths] or [
        RunFolder(file.parent) for file in sorted(runs.glob("*/config.yaml"))
    ]
    for run in found:
        run.load_config()
    if not found:
        raise UserError(f"there are no runs below {runs}: start one with `echo-lm run quickstart`, or name --runs")
    return found


def status_table(runs: list[RunFolder]) -> Group:
    """What `echo-lm status` prints: a table of the runs, and a line for each of their newest troubles."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("run", "state", "step", "loss", "tokens/s", "MFU", "ETA", "checkpoint", "evaluations", "nodes")
    for title in titles:
        left = title in ("run", "state", "checkpoint", "evaluations", "nodes")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    trouble = []
    for run in runs:
        s = run_status(run)
        total = s.evaluations_done + s.evaluations_pending + s.evaluations_failed
        failed = f", {s.evaluations_failed} failed" if s.evaluations_failed else ""
        table.add_row(
            s.name,
            s.state,
            f"{s.step}/{s.steps}",
            "-" if s.loss is None else f"{s.loss:.3f}",
            "-" if s.tokens_per_second is None else f"{s.tokens_per_second:,.0f}",
            "-" if s.mfu is None else f"{s.mfu:.1%}",
            "-" if s.eta_seconds is None or s.state != "running" else f"{s.eta_seconds / 60:.1f} min",
            s.checkpoint,
            f"{s.evaluations_done}/{total}{failed}",
            _nodes(s.nodes),
        )
        trouble += [Text(f"{s.name}: {_trouble(event)}", style="dim") for event in s.trouble]
    return Group(table, *trouble)


def watch(paths: list[Path], runs: Path) -> None:
    """Show the table until interrupted, as the files say at each moment; in a file or a pipe a table every so often."""
    with contextlib.suppress(KeyboardInterrupt):
        if not console.is_terminal:
            while True:
                console.print(status_table(find_runs(paths, runs)))
                time.sleep(WATCH_SECONDS)
        with Live(status_table(find_runs(paths, runs)), console=console, auto_refresh=False) as live:
            while True:
                live.update(status_table(find_runs(paths, runs)), refresh=True)
                time.sleep(WATCH_SECONDS)


def _nodes(nodes: dict[str, int]) -> str:
    """`node-a, node-b x4`, or how many, if they are many."""
    if len(nodes) > 4:
        return f"{len(nodes)} ({sum(nodes.values())} workers)"
    return ", ".join(name if workers == 1 else f"{name} x{workers}" for name, workers in sorted(nodes.items())) or "-"


def _trouble(event: dict[str, Any]) -> str:
    when = time.strftime("%d %b %H:%M:%S", time.localtime(event["time"]))
    what = {"lost": f"lost a {event.get('what')}", "evaluation_failed": f"evaluation {event.get('suite')} given up"}
    said = event.get("message") or event.get("reason") or ""
    return f"{when} {what.get(event['kind'], event['kind'])}: {said}"


def _state(run: RunFolder, last_step: dict, beats: bool) -> str:
    if run.finished():
        return "finished"
    if not last_step:
        return "waiting"
    return "running" if beats or time.time() - last_step["time"] < STALE_SECONDS else "stopped"


def _eta(config: RunConfig, step: int, rate: float | None) -> float | None:
    return (config.train.steps - step) * config.train.batch_tokens / rate if rate else None
