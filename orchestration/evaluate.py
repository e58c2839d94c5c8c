"""`echo-lm eval`: suites on the checkpoints of a run, by hand."""

from pathlib import Path

from ..evals.config import load_suite
from ..evals.run import complete_checkpoints, result_path, run_suite
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
    found = list(complete_checkpoints(run.path))
    wanted = [(folder, record) for folder, record in found if step in (None, record["step"])]
    if not wanted:
        have = ", ".join(str(record["step"]) for _, record in found) or "none"
        raise UserError(
            f"{run.path} has no complete checkpoint{'' if step is None else f' of step {step}'}: it has {have}"
        )
    for folder, record in wanted:
        for suite in chosen:
            with stage(f"{suite.name} on {folder.name}", total=1, unit="tokens") as progress:
                run_suite(
                    folder / "model",
                    suite,
                    run.data_folder(),
                    result_path(run.path, folder.name, suite.name),
                    step=record["step"],
                    tokens=record["tokens"],
                    device=device,
                    on_progress=lambda done, total, progress=progress: progress.update(done, total=total),
                )
    console.print(f"results: {run.evals}")
