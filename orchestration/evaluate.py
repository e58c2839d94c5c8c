"""`echo-lm eval`: suites on the checkpoints of a run, by hand."""

from pathlib import Path

from ..evals.config import load_suite
from ..evals.run import evaluate_run
from ..models.errors import UserError
from ..pipeline.run_folder import RunFolder
from .progress import console, stage


def evaluate_by_hand(run_path: Path, suites: list[str] | None, step: int | None, device: str) -> None:
    """Run `suites` (default: those of the run's configuration) on the checkpoint of `step` (default: on all).

    Raises:
        UserError: no such run, checkpoint or suite, or no suite to run.
    """
    run = RunFolder(run_path)
    chosen = [load_suite(name) for name in suites or run.load_config().evaluation.suites]
    if not chosen:
        raise UserError(f"{run.path} names no suites of its own: give one with --suite, e.g. --suite recall-quick")
    with stage("evaluate", total=1, unit="tokens") as progress:
        evaluate_run(
            run.path,
            chosen,
            run.data_folder(),
            step=step,
            device=device,
            on_progress=lambda done, total: progress.update(done, total=total),
        )
    console.print(f"results: {run.evals}")
