"""The driver of one run on a Ray cluster, which prepares data, trains, evaluates and updates MLflow; finished stages are
skipped."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ...models.common.errors import UserError
from ...pipeline.config import RunConfig
from ...pipeline.preflight import check_run
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import stop_reason
from ..evaluation.jobs import EvaluationJob, missing_jobs
from ..jobs.cluster import ray_cluster
from ..jobs.job import Resources
from ..jobs.ray_executor import RayExecutor
from ..jobs.scheduler import POLL_SECONDS, Scheduler
from ..preparation.executors import ray_data_map
from ..preparation.mixture import print_mixture
from ..preparation.prepare import prepare_dataset
from ..progress.bars import stage
from ..progress.training import TrainingProgress
from ..ray_train.trainer import train_worker_group
from ..tracking.mlflow import Tracker

TRACK_SECONDS = 10.0  # MLflow is updated in batches: it shares the cores with the training


def run_on_cluster(
    config: RunConfig,
    run: RunFolder,
    data: Path,
    address: str | None,
    tracking_uri: str | None,
    trust: bool,
    on_cluster: Callable[[], AbstractContextManager[None]],
) -> None:
    """Prepare the data, train and evaluate a run to its end on a Ray cluster.

    Args:
        on_cluster: a context that is entered while this process is connected to a cluster.

    Raises:
        UserError: bad input, or a stage that kept failing.
    """
    with ray_cluster(address), on_cluster():
        dataset = prepare_dataset(config.data, data, map_units=ray_data_map)
        print_mixture(config, dataset)
        run.prepare(config, dataset, trust=trust)
        check_run(run, config)
        _train_and_evaluate(run, config, tracking_uri)


def _train_and_evaluate(run: RunFolder, config: RunConfig, tracking_uri: str | None) -> None:
    """Train in one thread; in this one schedule evaluations, update MLflow and show progress until all of them are done."""
    training = _Thread(lambda: train_worker_group(run, config)) if not run.finished() else None
    with RayExecutor(config.evaluation.parallel) as executor:
        scheduler = Scheduler(lambda: _due(run, config), executor)
        with TrainingProgress(run, config) as progress, _Tracking(Tracker(run.path, tracking_uri)):
            while training and training.is_alive():
                scheduler.poll()
                progress.update()
                training.join(POLL_SECONDS)
            progress.update()
        if stop_reason(run):
            return
        if training and training.error:
            raise training.error
        remaining = len(missing_jobs(run, config))
        if remaining:
            with stage("evaluations still running", total=remaining, unit="suites") as evaluations:
                scheduler.run(
                    lambda: evaluations.update(remaining - len(missing_jobs(run, config))),
                    lambda: bool(stop_reason(run)),
                )
                evaluations.update(remaining - len(missing_jobs(run, config)))
    failures = scheduler.failures()
    if failures:
        name, reason = next(iter(failures.items()))
        raise UserError(f"{len(failures)} evaluations of {run.path} failed, first {name}: {reason}")


def _due(run: RunFolder, config: RunConfig) -> list[EvaluationJob]:
    evaluation = config.evaluation
    resources = Resources(cpus=evaluation.cpus, gpus=evaluation.gpus)
    device = "cuda" if evaluation.gpus else "cpu"
    return [replace(job, device=device, resources=resources) for job in missing_jobs(run, config)]


class _Tracking:
    """Context that updates MLflow from a thread, since calls to a server that is down may take a minute to fail."""

    def __init__(self, tracker: Tracker):
        self._tracker, self._stopped = tracker, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._loop, daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._tracker.sync()
            self._stopped.wait(TRACK_SECONDS)


class _Thread(threading.Thread):
    """A thread that stores the exception of its function for the caller."""

    def __init__(self, function: Callable[[], None]):
        super().__init__(daemon=True)
        self._function, self.error = function, None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.error = error
