"""Where runs stand, read from their files alone: it works with every cluster dead."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ..evals.run import complete_checkpoints
from ..models.errors import UserError
from ..pipeline.config import RunConfig
from ..pipeline.events import read_events, steps
from ..pipeline.run_folder import RunFolder
from .evaluation_jobs import missing_jobs, wanted_jobs

STALE_SECONDS = 120


@dataclass(frozen=True)
class RunStatus:
    """One line of `echo-lm status`."""

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


def run_status(run: RunFolder) -> RunStatus:
    """Read the status of one run.

    Raises:
        UserError: not a run folder.
    """
    config = run.load_config()
    done_steps = steps(read_events(run.events_file)) if run.events_file.exists() else []
    last = done_steps[-1] if done_steps else {}
    step = last.get("step", 0)
    rate = last.get("tokens_per_second")
    wanted, missing = wanted_jobs(run, config), missing_jobs(run, config)
    found = list(complete_checkpoints(run.path))
    return RunStatus(
        name=config.name,
        state=_state(run, last),
        step=step,
        steps=config.train.steps,
        loss=last.get("loss"),
        tokens_per_second=rate,
        eta_seconds=_eta(config, step, rate),
        checkpoint=found[-1][0].name if found else "-",
        evaluations_done=len(wanted) - len(missing),
        evaluations_pending=len(missing),
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


def status_table(runs: list[RunFolder]) -> Table:
    """The table that `echo-lm status` prints."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "state", "step", "loss", "tokens/s", "ETA", "checkpoint", "evaluations"):
        table.add_column(title, justify="left" if title in ("run", "state", "checkpoint") else "right", no_wrap=True)
    for run in runs:
        s = run_status(run)
        table.add_row(
            s.name,
            s.state,
            f"{s.step}/{s.steps}",
            "-" if s.loss is None else f"{s.loss:.3f}",
            "-" if s.tokens_per_second is None else f"{s.tokens_per_second:,.0f}",
            "-" if s.eta_seconds is None or s.state != "running" else f"{s.eta_seconds / 60:.1f} min",
            s.checkpoint,
            f"{s.evaluations_done}/{s.evaluations_done + s.evaluations_pending}",
        )
    return table


def _state(run: RunFolder, last_step: dict) -> str:
    if run.finished():
        return "finished"
    if not last_step:
        return "waiting"
    return "running" if time.time() - last_step["time"] < STALE_SECONDS else "stopped"


def _eta(config: RunConfig, step: int, rate: float | None) -> float | None:
    return (config.train.steps - step) * config.train.batch_tokens / rate if rate else None
