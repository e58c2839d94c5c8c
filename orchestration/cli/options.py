"""Arguments and options that several commands share, and the parsing of durations."""

import re
from pathlib import Path
from typing import Annotated

import typer

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

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str, option: str) -> float:
    """Parse a duration such as `90s`, `30m` or `2h`; returns seconds.

    Args:
        option: the option's name, for the error message.

    Raises:
        UserError: not such a duration, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or not float(match[1]):
        raise UserError(f"{option} {text!r} is no time: write it as 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]
