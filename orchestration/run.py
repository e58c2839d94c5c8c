"""The whole pipeline of one run: data, training gang, evaluations beside it, MLflow, report. Finished stages are skipped."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..evals.summary import write_summary
from ..models.errors import UserError
from ..pipeline.config import RunConfig
from ..pipeline.preflight import check_run
from ..pipeline.report import write_report
from ..pipeline.run_folder import RunFolder
from .cluster import ray_cluster
from .data import print_mixture
from .evaluation_jobs import EvaluationJob, RayPool, Scheduler, missing_jobs
from .gang import train_gang
from .prepare import dataset_is_complete, prepare_dataset
from .progress import console, stage
from .tracking import Tracker
from .training_progress import TrainingProgress
from .units import ray_data_map

POLL_SECONDS = 1.0
TRACK_SECONDS = 10.0  # MLflow is told in batches: it shares the cores with the training


def run_pipeline(config: RunConfig, runs: Path, data: Path, address: str | None = None) -> RunFolder:
    """Take a recipe from raw text to its report; run again, it goes on where it stopped or does nothing.

    Raises:
        UserError: bad input, a folder in use, no disk space, or a stage that kept failing.
    """
    run = RunFolder(runs / config.name)
    run.check(config)
    with run.lock():
        if not _complete(run, config, data):
            with ray_cluster(address):
                dataset = prepare_dataset(config.data, data, map_units=ray_data_map)
                print_mixture(config, dataset)
                run.prepare(config, dataset)
                check_run(run, config)
                _train_and_evaluate(run, config)
        tracker = Tracker(run.path)
        report = write_report(run.path)
        write_summary(run.path)
        tracker.sync()
    console.print(f"report: {report}")
    console.print(f"MLflow: {sys.executable} -m mlflow ui --backend-store-uri {tracker.uri}  (http://127.0.0.1:5000)")
    return run


def _complete(run: RunFolder, config: RunConfig, data: Path) -> bool:
    """Whether every stage of exactly this run is done, so that no cluster need start."""
    if not run.finished():
        return False
    done = dataset_is_complete(config.data, data) and not missing_jobs(run, config)
    if done:
        console.print(f"{run.path}: data, training and evaluations are complete; nothing to do")
    return done


def _train_and_evaluate(run: RunFolder, config: RunConfig) -> None:
    """Train in one thread; in this one schedule evaluations, feed MLflow and show progress until all of it is done."""
    evaluation = config.evaluation
    pool = RayPool(evaluation.parallel, cpus=evaluation.cpus, gpus=evaluation.gpus)
    scheduler, tracker = Scheduler(lambda: _due(run, config), pool), Tracker(run.path)
    tracked = 0.0
    training = _Thread(lambda: train_gang(run, config)) if not run.finished() else None
    with TrainingProgress(run, config) as progress:
        while training and training.is_alive():
            scheduler.poll()
            progress.update()
            if time.monotonic() - tracked > TRACK_SECONDS:
                tracker.sync()
                tracked = time.monotonic()
            training.join(POLL_SECONDS)
        progress.update()
    if training and training.error:
        raise training.error
    left = len(missing_jobs(run, config))
    if left:
        with stage("evaluations still running", total=left, unit="suites") as evaluations:
            waiting = threading.Event()
            while scheduler.poll():
                evaluations.update(left - len(missing_jobs(run, config)))
                waiting.wait(POLL_SECONDS)
            evaluations.update(left - len(missing_jobs(run, config)))
    failed = scheduler.given_up()
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(f"{len(failed)} evaluations of {run.path} failed, first {name}: {reason}")


def _due(run: RunFolder, config: RunConfig) -> list[EvaluationJob]:
    device = "cuda" if config.evaluation.gpus else "cpu"
    return [replace(job, device=device) for job in missing_jobs(run, config)]


class _Thread(threading.Thread):
    """A thread that keeps the exception of its function."""

    def __init__(self, function: Callable[[], None]):
        super().__init__(daemon=True)
        self._function, self.error = function, None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
