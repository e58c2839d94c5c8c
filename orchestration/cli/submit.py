"""`echo-lm submit`: the whole pipeline as a job of a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Amend, Data, Overrides, Runs, Target, Tracking, Trust


def submit(
    target: Target,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(help="Dashboard of the Ray cluster's head.", envvar="RAY_API_SERVER_ADDRESS")
    ] = "http://127.0.0.1:8265",
    runs: Runs = Path("runs"),
    data: Data = None,
    tracking_uri: Tracking = None,
    trust: Trust = False,
    amend: Amend = False,
    follow: Annotated[bool, typer.Option(help="Show what it prints until it ends.")] = False,
) -> None:
    """Submit `echo-lm run` to a Ray cluster as a job, which does not depend on this machine.

    Paths are those of the cluster's nodes, on storage that they share.
    """
    from ..launch.submit import submit_run
    from ..launch.target import data_root

    submit_run(
        target,
        overrides or [],
        address,
        runs,
        data_root(target, data),
        tracking_uri,
        trust=trust,
        amend=amend,
        follow=follow,
    )
