"""`echo-lm sweep`: plan, run, status, report."""

from pathlib import Path
from typing import Annotated

import typer

from ..progress.bars import console
from .options import seconds as parse_seconds

sweep_app = typer.Typer(
    name="sweep",
    help="Recall sweeps: many small models trained on recall tasks and evaluated on the same queries.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Sweep = Annotated[str, typer.Argument(help="A sweep's name (transfer) or its file (.yaml).")]
Sweeps = Annotated[Path, typer.Option(help="Folder that holds the results of sweeps.", envvar="ECHO_LM_SWEEPS")]


@sweep_app.command()
def plan(sweep: Sweep) -> None:
    """Every arm with its parameters, runs and tokens. Runs nothing, refuses impossible runs."""
    from ...evals.sweeps.config import load_sweep
    from ..sweeps.tables import plan_summary, plan_table

    loaded = load_sweep(Path(sweep))
    console.print(plan_table(loaded))
    console.print(plan_summary(loaded), markup=False)


@sweep_app.command()
def run(
    sweep: Annotated[list[str], typer.Argument(help="Names or files (.yaml) of sweeps; the first comes first.")],
    sweeps: Sweeps = Path("sweeps"),
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be given several times.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; GPUs where there are any if left out.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on each GPU (2 if left out), or on the CPU (1).")
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(min=1, help="Runs that train side by side in a process; the sweep's own number on a GPU, else 1."),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option("--for", help="Start no group that would end later than that from now, and stop then: 9m, 2h."),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Also keep all results in this .tar.xz, written anew after every group.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Place the groups with Ray, on a cluster of its own.")] = False,
    address: Annotated[str | None, typer.Option(help="Place the groups with the Ray cluster at this address.")] = None,
) -> None:
    """Train and evaluate every run that has no result, then report. After an interruption the same command resumes.

    All visible GPUs are used. Several of these commands may share a folder: no run is done twice.
    """
    from ..sweeps.run import run_sweeps

    run_sweeps(
        sweep,
        sweeps,
        arms=arm or (),
        device=device,
        workers=workers,
        together=together,
        seconds=None if limit is None else parse_seconds(limit, "--for"),
        archive=archive,
        use_ray=ray or address is not None,
        address=address,
    )


@sweep_app.command()
def status(sweep: Sweep, sweeps: Sweeps = Path("sweeps")) -> None:
    """The numbers of runs of every arm that are done, running, failed and left. Reads files only."""
    from ..sweeps.tables import status_table

    console.print(status_table(sweep, sweeps))


@sweep_app.command()
def report(
    sweep: Sweep,
    sweeps: Sweeps = Path("sweeps"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page and its figures; the sweep's own folder if left out.")
    ] = None,
    lines: Annotated[int | None, typer.Option(help="Leave out tables that make the page longer.", min=1)] = None,
) -> None:
    """Write NAME.md and the figures from the results, also of an unfinished sweep; in the sweep's own folder NAME.json too.

    The same results give the same bytes. Hand-written notes in NAME.notes.md beside the page are included in it.
    """
    from ...evals.sweeps.config import load_sweep
    from ...evals.sweeps.report import write_report

    folder = out or sweeps / load_sweep(Path(sweep)).name
    console.print(f"report: {write_report(Path(sweep), sweeps, folder, lines)}")
