"""`echo-lm checkpoint`: a checkpoint of a run that is training, at once."""

from typing import Annotated

import typer

from ..progress.bars import console
from .options import RunPath
from .options import seconds as parse_seconds


def checkpoint(
    run: RunPath,
    timeout: Annotated[str, typer.Option(help="How long to wait until it is complete.")] = "10m",
) -> None:
    """Have a run that is training write a checkpoint after its current step, and wait until it is complete."""
    from ...pipeline.run.folder import RunFolder
    from ..launch.checkpoint import checkpoint_run

    step = checkpoint_run(RunFolder(run), parse_seconds(timeout, "--timeout"))
    console.print(f"{run} has a checkpoint of step {step}", soft_wrap=True, markup=False)
