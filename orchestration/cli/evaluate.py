"""`echo-lm eval`: suites on the checkpoints of a run, or of every run that a pattern matches."""

from pathlib import Path
from typing import Annotated

import typer

from ...models.common.errors import UserError
from .options import seconds


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder, e.g. runs/quickstart.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite name or file; may be given several times. Default: the run's own.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Only the checkpoint of this step; all checkpoints if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the datasets, if not where the run has it.", envvar="ECHO_LM_DATA"),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(help="Pattern of run folders, e.g. 'runs/*': evaluate whatever appears there, for ever."),
    ] = None,
    every: Annotated[str, typer.Option(help="Between two looks of --watch: 90s, 30m, 2h.")] = "30m",
    parallel: Annotated[int, typer.Option(min=1, help="Jobs of --watch at once.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --watch; processes of this machine if left out.")
    ] = None,
    fetch_bigbench: Annotated[
        bool, typer.Option("--fetch-bigbench", help="First download the items of suite bigbench-mc (358 MB).")
    ] = False,
) -> None:
    """Evaluate a run's checkpoints by hand, or watch many runs. Existing results are not computed again."""
    from ..evaluation.by_hand import evaluate_by_hand
    from ..evaluation.watcher import Watcher

    if (run is None) == (watch is None):
        raise UserError(
            "name a run folder (echo-lm eval runs/quickstart) or a pattern (--watch 'runs/*'), one of the two"
        )
    if watch is not None:
        Watcher(watch, suites=suite, parallel=parallel, device=device, address=address).watch(seconds(every, "--every"))
    else:
        assert run is not None
        evaluate_by_hand(run, suite, step, device, data=data, fetch_bigbench=fetch_bigbench)
