"""Evaluations started by hand, `echo-lm eval`: suites on the checkpoints of a run."""

from pathlib import Path

from ...evals.config import load_suite
from ...evals.layout import bigbench_folder, chosen_checkpoints, result_path, trained_on_recall
from ...evals.measurements.bigbench import fetch
from ...evals.summary import write_summary
from ...models.common.errors import UserError
from ...models.common.run_layout import MODEL, REPORT
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.report import write_report
from ..jobs.job import run_under_leases
from ..progress.bars import console, stage
from .jobs import EvaluationJob


def evaluate_by_hand(
    run_path: Path,
    suites: list[str] | None,
    step: int | None,
    device: str,
    *,
    data: Path | None = None,
    fetch_bigbench: bool = False,
) -> None:
    """Run `suites` (default: those of the run's configuration) on the checkpoint of `step` (default: on all).

    The dataset is the run's, or the one of that name in the folder `data`. Jobs that another process is evaluating are skipped. A
    report that exists is written anew, and the record of a run that is tracked in MLflow is updated.

    Raises:
        UserError: no such run, checkpoint or suite, or no suite to run.
    """
    run = RunFolder(run_path)
    config = run.load_config()
    dataset = run.data_folder() if data is None else data / config.data.name
    if not dataset.is_dir():
        raise UserError(
            f"{run.path} was trained on {dataset}, which is not here: name the folder that holds it by --data"
        )
    names = list(suites or config.evaluation.suites)
    if not names:
        raise UserError(f"{run.path} names no suites of its own: give one with --suite, e.g. --suite recall-quick")
    if fetch_bigbench:
        console.print(f"bigbench: {fetch(bigbench_folder(dataset))}")
    recall_trained = trained_on_recall(run.path)
    jobs = [
        EvaluationJob(
            name,
            folder / MODEL,
            dataset,
            result_path(run.path, folder.name, load_suite(name).name),
            record["step"],
            record["tokens"],
            recall_trained,
            device,
        )
        for folder, record in chosen_checkpoints(run.path, step)
        for name in names
    ]
    for number, job in enumerate(jobs, 1):
        with stage(f"evaluate {job.name} ({number} of {len(jobs)})", total=1, unit="tokens") as progress:
            evaluated = run_under_leases(
                job, on_progress=lambda done, total, progress=progress: progress.update(done, total=total)
            )
        if not evaluated:
            console.print(f"{job.name} is being evaluated by another process: left to it")
    console.print(f"results: {run.evals}, summary: {write_summary(run.path)}")
    if (run.path / REPORT).is_file():
        console.print(f"report: {write_report(run.path)}")
    sync_record(run.path)


def sync_record(run_path: Path) -> None:
    """Update the run's record in MLflow, if it has one; imports MLflow only then."""
    from ..tracking.client import default_database
    from ..tracking.mlflow import Tracker

    if default_database(run_path).is_file():
        Tracker(run_path).sync(alive=None)
