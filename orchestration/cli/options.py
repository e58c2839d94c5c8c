"""Arguments and options that several commands share, and the parsing of durations."""

from pathlib import Path
from typing import Annotated

import typer

from ...models.common.durations import duration_seconds
from ...models.common.errors import UserError

Target = Annotated[
    str, typer.Argument(help="A recipe name, a recipe file (.yaml), or the folder of a run to go on with.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, e.g. train.steps=200 run.workers=4.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/quickstart.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.", envvar="ECHO_LM_RUNS")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds the datasets; where a run to go on with has its own, else data, if left out.",
        envvar="ECHO_LM_DATA",
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow, a server or a sqlite file; mlflow.db beside the runs folder if left out.",
        envvar="ECHO_LM_MLFLOW",
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Go on with a run folder that belongs to another user.")]
Amend = Annotated[
    bool,
    typer.Option(
        "--amend",
        help="Change train, mixture or data_seed of a run from its newest checkpoint on; a finished one goes on.",
    ),
]


def seconds(text: str, option: str) -> float:
    """Parse a duration such as `90s`, `30m` or `3h55m`; returns seconds.

    Args:
        option: the option's name, for the error message.

    Raises:
        UserError: not such a duration, or zero.
    """
    try:
        return duration_seconds(text)
    except ValueError as error:
        raise UserError(f"{option} {error}") from None
