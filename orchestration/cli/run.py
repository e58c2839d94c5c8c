"""`echo-lm run`: the whole pipeline on Ray, from raw text to the report."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Amend, Data, Overrides, Runs, Target, Tracking, Trust


def run(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    data: Data = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use, host:port; one of its own on loopback if left out.")
    ] = None,
    tracking_uri: Tracking = None,
    trust: Trust = False,
    amend: Amend = False,
) -> None:
    """The whole pipeline: prepare data, train, evaluate every checkpoint beside the training, record in MLflow, report.

    Processes that die are restarted. After an interruption the same command resumes the run; finished stages are skipped.
    """
    from ..launch.run import run_pipeline
    from ..launch.target import data_root, resolve_target

    config, run_folder = resolve_target(target, overrides, runs)
    if amend:
        from ..launch.amend import amend_run  # imports what reads checkpoints: seconds

        amend_run(run_folder, config, trust=trust)
    run_pipeline(config, run_folder, data_root(target, data), address, tracking_uri, trust=trust)
