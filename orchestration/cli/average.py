"""`echo-lm average`: the mean of the weights of several checkpoints, as a run of its own."""

from typing import Annotated

import typer

from ..progress.bars import console
from .options import RunPath


def average(
    run: RunPath,
    last: Annotated[int, typer.Option(help="How many of the newest checkpoints.")] = 5,
    name: Annotated[str | None, typer.Option(help="Name of the average; RUN-average-5 if left out.")] = None,
) -> None:
    """Average the weights of the newest checkpoints of a run into a folder beside it, to evaluate or to begin a run from."""
    from ...pipeline.checkpoint.average import average_run
    from ...pipeline.run.folder import RunFolder

    averaged = average_run(RunFolder(run), last, name)
    console.print(f"{averaged.path}: evaluate it with `echo-lm eval {averaged.path}`", soft_wrap=True, markup=False)
