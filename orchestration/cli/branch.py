"""`echo-lm branch`: a run that begins from a checkpoint of another one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..progress.bars import console
from .options import Data, Overrides, RunPath


def branch(
    run: RunPath,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest if left out.")] = None,
    what: Annotated[
        Literal["weights", "optimizer", "everything"],
        typer.Option(help="What is taken; with everything, steps, schedule and data go on."),
    ] = "everything",
    runs: Annotated[Path | None, typer.Option(help="Folder of the new run; that of the parent if left out.")] = None,
    data: Data = None,
) -> None:
    """Set up a run that begins from a checkpoint of another: a cooldown, other data, another learning rate. Then train it by the
    name of its folder.

    The overrides hold its name and what changes: name=cooldown train.schedule=warmup-stable-decay train.steps=1000
    train.decay_steps=200.
    """
    from ...pipeline.run.lineage import shown_lineage
    from ..launch.branch import branch_run

    branched = branch_run(run, overrides or [], step=step, what=what, runs=runs, data=data)
    lineage = shown_lineage(branched.path)
    console.print(f"{branched.path} begins from {lineage and lineage.parent}", soft_wrap=True, markup=False)
    console.print(f"train it with `echo-lm train {branched.path}` or `run`", soft_wrap=True, markup=False)
