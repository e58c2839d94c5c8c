"""`echo-lm status`: where runs stand, as a table."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from ..progress.bars import console
from .options import Runs


def status(
    run: Annotated[list[Path] | None, typer.Argument(help="Run folders; every run if left out.")] = None,
    runs: Runs = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until interrupted.")] = False,
) -> None:
    """The state of runs: step, loss, tokens/s, MFU, ETA, checkpoints, evaluations, nodes, trouble. Reads files only."""
    # Garbage collection would take a fifth of the time of this short command.
    gc.disable()
    try:
        from ..monitor.status import Status, find_runs
        from ..monitor.status import watch as watch_status

        if not watch:
            console.print(Status().table(find_runs(run or [], runs)))
    finally:
        gc.enable()
    if watch:
        watch_status(run or [], runs)
