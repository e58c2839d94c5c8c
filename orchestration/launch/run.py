"""`echo-lm run`: one run from raw text to its report, by a driver process that is restarted after failures.

The supervising process starts quickly and stays small: torch, Ray and MLflow are imported where the driver needs them.
"""

import sys
from pathlib import Path

from ...evals.layout import result_files
from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ..evaluation.jobs import missing_jobs
from ..preparation.prepare import dataset_is_complete
from ..progress.bars import console
from .driver import run_on_cluster
from .supervisor import is_reachable, supervise


def run_pipeline(
    config: RunConfig,
    runs: Path,
    data: Path,
    address: str | None = None,
    tracking_uri: str | None = None,
    *,
    trust: bool = False,
) -> RunFolder:
    """Run the pipeline of a recipe from raw text to its report; resumes an interrupted run and skips a complete one.

    This process only supervises: a driver process does the work, and is restarted when it or its Ray cluster dies.

    Args:
        address: of an existing Ray cluster; one of its own on loopback if None.
        tracking_uri: of MLflow; a sqlite file beside the folder of runs if None.
        trust: go on with a run folder of another user.

    Raises:
        UserError: bad input, a folder in use, no disk space, or a stage that kept failing.
    """
    run = RunFolder(runs / config.name)
    run.check(config, trust=trust)
    with run.lock():
        if not _complete(run, config, data):
            if address and not is_reachable(address):
                raise UserError(
                    f"no Ray cluster answers at {address}: start one with `ray start --head` or leave --address out"
                )
            dataset = data / config.data.name
            supervise(
                run,
                config,
                run_on_cluster,
                (config, runs, data, address, tracking_uri, trust),
                address=address,
                progress=lambda: (_latest(run), len(result_files(run.path)), _count(dataset)),
            )
        from ...evals.summary import write_summary
        from ...pipeline.run.report import write_report
        from ..tracking.mlflow import Tracker

        tracker = Tracker(run.path, tracking_uri)
        report = write_report(run.path)
        write_summary(run.path)
        tracker.sync()
    console.print(f"report: {report}")
    local = f"{sys.executable} -m mlflow ui --backend-store-uri {tracker.uri}  (http://127.0.0.1:5000)"
    console.print(f"MLflow: {tracker.uri if tracker.uri.startswith('http') else local}")
    return run


def _latest(run: RunFolder) -> str:
    return run.latest_file.read_text(encoding="utf-8") if run.latest_file.is_file() else ""


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _complete(run: RunFolder, config: RunConfig, data: Path) -> bool:
    """Whether every stage of this run is complete, so that no cluster needs to start."""
    if not run.finished():
        return False
    complete = dataset_is_complete(config.data, data) and not missing_jobs(run, config)
    if complete:
        console.print(f"{run.path}: data, training and evaluations are complete; nothing to do")
    return complete
