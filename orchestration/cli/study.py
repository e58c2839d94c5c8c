"""`echo-lm study`: plan, run, status, fit, report, track."""

from pathlib import Path
from typing import Annotated

import typer

from ..progress.bars import console
from .options import seconds as parse_seconds

study_app = typer.Typer(
    name="study",
    help="Scaling studies: a question in a YAML file, an answer with error bars and figures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Study = Annotated[str, typer.Argument(help="A study's name (study-pocket), its file (.yaml), or its folder.")]
Studies = Annotated[Path, typer.Option(help="Folder that holds the studies.", envvar="ECHO_LM_STUDIES")]
Data = Annotated[Path, typer.Option(help="Folder that holds the datasets.", envvar="ECHO_LM_DATA")]
Uri = Annotated[str | None, typer.Option(help="MLflow tracking URI; mlflow.db beside the studies folder if left out.")]


@study_app.command()
def plan(study: Study, data: Data = Path("data"), studies: Studies = Path("studies")) -> None:
    """Every cell with its FLOPs, tokens, epochs, predicted hours and cost, and what the cells can tell. Runs nothing.

    Impossible cells are refused; a design that cannot identify the loss law is warned of, with cells worth adding. With
    limits.gpu_hours it says which cells fit, by the speed measured so far if the study was begun, and judges those alone.
    """
    from ..studies.config import load_study
    from ..studies.folder import StudyFolder
    from ..studies.preflight.design import describe_designs
    from ..studies.run import plan_study
    from ..studies.spending.choice import without_left_out
    from ..studies.spending.spent import choice_of, describe_choice, refuse_unaffordable
    from ..studies.tables import plan_summary, plan_table

    planned = plan_study(load_study(study), data)
    console.print(plan_table(planned))
    console.print(plan_summary(planned), markup=False)
    choice = choice_of(StudyFolder(studies / planned.study.name), planned)
    refuse_unaffordable(choice, planned)
    if choice is not None:
        console.print(describe_choice(choice), markup=False)
        planned = without_left_out(planned, choice)
    console.print("\n".join(describe_designs(planned)), markup=False)


@study_app.command()
def run(
    study: Study,
    studies: Studies = Path("studies"),
    data: Data = Path("data"),
    ray: Annotated[bool, typer.Option("--ray", help="Place the cells with Ray, on a cluster of its own.")] = False,
    address: Annotated[str | None, typer.Option(help="Place the cells with the Ray cluster at this address.")] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--for", help="Start no cell that would end later than that from now, and stop then: 50m, 2h. Without Ray."
        ),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Also keep the finished cells in this .tar.xz, written anew after each.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Go on from such an archive, or from a report's study.json.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Devices of this machine, instead of the study's hardware.devices.")
    ] = None,
) -> None:
    """Run every cell that has no result, then fit and report. After an interruption the same command resumes.

    Without --ray or --address the cells are processes of this machine, packed on its devices.
    """
    from ..jobs.archive import check_archive
    from ..studies.archive import unpack
    from ..studies.config import load_study
    from ..studies.folder import StudyFolder, describe_remaining, study_to_run
    from ..studies.preflight.design import plan_warnings
    from ..studies.reporting import fit_and_report
    from ..studies.run import plan_study, run_study
    from ..studies.spending.spent import choice_of, describe_choice, record_choice
    from ..studies.tables import plan_summary

    limit_seconds = None if limit is None else parse_seconds(limit, "--for")
    if archive is not None:
        check_archive(archive)
    if source is not None:
        unpack(source, StudyFolder(studies / load_study(study).name))
    loaded = study_to_run(study, studies)
    if devices is not None:
        loaded = loaded.model_copy(update={"hardware": loaded.hardware.model_copy(update={"devices": devices})})
    planned = plan_study(loaded, data)
    console.print(plan_summary(planned), markup=False)
    for warning in plan_warnings(planned):
        console.print(f"WARNING: {warning}", markup=False)
    ray |= address is not None
    folder = run_study(loaded, studies, data, use_ray=ray, address=address, seconds=limit_seconds, archive=archive)
    planned = folder.load_plan()
    choice = choice_of(folder, planned)
    if choice is not None:
        record_choice(folder, choice)
        console.print(describe_choice(choice), markup=False)
    if remaining := describe_remaining(folder, planned, choice.left_out if choice else ()):
        console.print(remaining, markup=False)
    elif folder.results(planned):
        fit_and_report(folder)


@study_app.command()
def status(
    study: Study,
    studies: Studies = Path("studies"),
    watch: Annotated[bool, typer.Option("--watch", help="Draw the table again until every cell is done.")] = False,
) -> None:
    """The state of every cell, and the hours left, predicted by the speed measured so far. Reads files only."""
    from ..studies.folder import find_study
    from ..studies.tables import watch_status

    watch_status(find_study(study, studies), watch)


@study_app.command()
def fit(study: Study, studies: Studies = Path("studies")) -> None:
    """Fit the finished cells: fit.json, and the laws as a table. Given a .yaml file, its `fit` and `evaluation.loss` count."""
    from ..studies.folder import find_study
    from ..studies.reporting import take_fit_options, write_fit
    from ..studies.tables import laws_table

    folder = find_study(study, studies)
    if study.endswith((".yaml", ".yml")):
        take_fit_options(folder, study)
    console.print(laws_table(write_fit(folder)))
    console.print(f"fit: {folder.fit_file}")


@study_app.command()
def report(study: Study, studies: Studies = Path("studies")) -> None:
    """Fit, then write report.md, report.html and the figures; mirror them in MLflow where it is installed.

    Given a .yaml file, its `fit` and `evaluation.loss` count.
    """
    from ..studies.folder import find_study
    from ..studies.reporting import fit_and_report, take_fit_options

    folder = find_study(study, studies)
    if study.endswith((".yaml", ".yml")):
        take_fit_options(folder, study)
    fit_and_report(folder)


@study_app.command()
def track(study: Study, studies: Studies = Path("studies"), uri: Uri = None) -> None:
    """Replay a study into MLflow: one parent run, and a child run for each cell. A repetition adds nothing."""
    from ..studies.folder import find_study
    from ..studies.tracking import track_study

    folder = find_study(study, studies)
    console.print(f"{folder.path} is in MLflow as run {track_study(folder, uri)}")
