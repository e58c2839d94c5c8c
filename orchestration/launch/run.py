"""`echo-lm run`: one run from raw text to its report, by a driver process that is restarted after failures.

The supervising process starts quickly and stays small: torch, Ray and MLflow are imported where the driver needs them.
"""

import importlib.util
import shlex
import sys
import threading
from pathlib import Path

from ...evals.layout import result_files
from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import TimeLimit, stop_reason
from ..evaluation.jobs import missing_jobs
from ..jobs.cluster import is_reachable
from ..preparation.prepare import dataset_is_complete
from ..progress.bars import console
from .driver import run_on_cluster
from .supervisor import supervise
from .target import how_to_go_on

SYNC_SECONDS = 8.0  # for MLflow's record of a run that was stopped


def run_pipeline(
    config: RunConfig,
    run: RunFolder,
    data: Path,
    address: str | None = None,
    tracking_uri: str | None = None,
    *,
    trust: bool = False,
) -> None:
    """Run the pipeline of a recipe from raw text to its report; resumes an interrupted run and skips a complete one.

    This process only supervises: a driver process does the work, and is restarted when it or its Ray cluster dies. At SIGTERM or
    SIGUSR1 the workers save a checkpoint, and everything ends.

    Args:
        address: of an existing Ray cluster; one of its own on loopback if None.
        tracking_uri: of MLflow; a sqlite file beside the folder of runs if None.
        trust: go on with a run folder of another user.

    Raises:
        UserError: bad input, a folder in use, no disk space, or a stage that kept failing.
    """
    run.check(config, trust=trust)
    stopped_by = ""
    with run.lock(), TimeLimit(run, config):
        if not _complete(run, config, data):
            if address and not is_reachable(address):
                raise UserError(
                    f"no Ray cluster answers at {address}: start one with `ray start --head` or leave --address out"
                )
            dataset = data / config.data.name
            try:
                stopped_by = supervise(
                    run,
                    config,
                    run_on_cluster,
                    (config, run, data, address, tracking_uri, trust),
                    address=address,
                    progress=lambda: (_latest(run), len(result_files(run.path)), _count(dataset)),
                )
            except BaseException:
                if run.finished():  # evaluations failed: the report is written from the existing results
                    _write_report(run)
                _sync_briefly(run, tracking_uri)
                raise
            stopped_by = stopped_by or stop_reason(run)
        if stopped_by:
            _sync_briefly(run, tracking_uri)
            console.print(f"{run.path}: stopped by {stopped_by} before its end; the same command goes on")
            return
        if not run.finished():
            console.print(f"{run.path}: stopped before its end; {how_to_go_on(run, config, 'run')}", markup=False)
        _write_report(run)
        _record(run, tracking_uri)


def _write_report(run: RunFolder) -> None:
    """Write the report and the summary of the evaluations."""
    from ...evals.summary import write_summary
    from ...pipeline.run.report import write_report

    report = write_report(run.path)
    write_summary(run.path)
    console.print(f"report: {report}", soft_wrap=True, markup=False)


def _record(run: RunFolder, tracking_uri: str | None) -> None:
    """Update MLflow, and print how to open its record.

    Raises:
        UserError: MLflow is installed here, but could not be written.
    """
    from ..tracking.mlflow import Tracker

    tracker = Tracker(run.path, tracking_uri)
    if not tracker.sync(alive=False):
        _report_missing_record(run, tracking_uri, tracker.problem)
        return
    opened = tracker.uri if tracker.uri.startswith("http") else f"{ui_command(tracker.uri)}  (http://127.0.0.1:5000)"
    console.print(f"MLflow: {opened}", soft_wrap=True, markup=False)  # not wrapped: it is to be copied


def ui_command(uri: str) -> str:
    """The shell command that opens an MLflow record kept in a file."""
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri])


def _report_missing_record(run: RunFolder, tracking_uri: str | None, problem: str) -> None:
    """Print that training and evaluations are complete, but their record in MLflow is not.

    Raises:
        UserError: MLflow is installed here, but could not be written.
    """
    if importlib.util.find_spec("mlflow") is None:  # on purpose, on small machines
        console.print("MLflow: not installed here; `echo-lm track` replays the files elsewhere")
        return
    raise UserError(
        f"{run.path} is trained and evaluated, but its record is not complete. {problem}, and complete the record with "
        f"`{_track_command(run, tracking_uri)}`"
    )


def _track_command(run: RunFolder, tracking_uri: str | None) -> str:
    uri = ["--tracking-uri", tracking_uri] if tracking_uri else []
    return shlex.join(["echo-lm", "track", str(run.path), *uri])


def _sync_briefly(run: RunFolder, tracking_uri: str | None) -> None:
    """Record in MLflow that the run has ended, within a short time limit: a batch system gives half a minute for everything."""
    from ..tracking.mlflow import Tracker

    if not run.exists() or importlib.util.find_spec("mlflow") is None:
        return
    tracker, done = Tracker(run.path, tracking_uri, outage_logged=True), []
    thread = threading.Thread(target=lambda: done.append(tracker.sync(alive=False)), daemon=True)
    thread.start()
    thread.join(SYNC_SECONDS)
    if done != [True]:
        why = tracker.problem or f"MLflow at {tracker.uri} took longer than {SYNC_SECONDS:g} s"
        command = _track_command(run, tracking_uri)
        console.print(f"{why}; `{command}` completes the record", soft_wrap=True, markup=False)


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
