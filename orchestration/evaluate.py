"""`echo-lm eval`: suites on the checkpoints of a run, by hand."""

from pathlib import Path

from ..evals.run import run_suite
from ..models.errors import UserError
from ..models.files import read_json
from ..pipeline.checkpoint import checkpoint_name, complete_checkpoints
from ..pipeline.run_folder import RunFolder
from .progress import console, stage


def evaluate_by_hand(run_path: Path, suites: list[str] | None, step: int | None, device: str) -> None:
    """Run `suites` (default: those of the run's configuration) on the checkpoint of `step` (default: on all).

    Raises:
        UserError: no such run, checkpoint or suite, or no suite to run.
    """
    run = RunFolder(run_path)
    names = suites or list(run.load_config().evaluation.suites)
    if not names:
        raise UserError(f"{run.path} names no suites of its own: give one with --suite, e.g. --suite recall-quick")
    folders = [f for f in complete_checkpoints(run) if step is None or f.name == checkpoint_name(step)]
    if not folders:
        have = ", ".join(f.name for f in complete_checkpoints(run)) or "none"
        raise UserError(
            f"{run.path} has no complete checkpoint {'' if step is None else checkpoint_name(step)}: it has {have}"
        )
    with stage("evaluate", total=len(folders) * len(names), unit="suites") as progress:
        done = 0
        for folder in folders:
            record = read_json(folder / "complete.json")
            for name in names:
                output = run.evals / folder.name / f"{Path(name).stem}.json"
                run_suite(
                    folder / "model",
                    name,
                    run.data_folder(),
                    output,
                    step=record["step"],
                    tokens=record["tokens"],
                    device=device,
                )
                done += 1
                progress.update(done, f"{folder.name} {name}")
    console.print(f"results: {run.evals}")
