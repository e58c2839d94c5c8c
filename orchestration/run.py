"""The whole pipeline of one run: data, training gang, evaluations beside it, MLflow, report. Finished stages are skipped."""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
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
from .supervisor import answers, supervise
from .tracking import Tracker
from .training_progress import TrainingProgress
from .units import ray_data_map

POLL_SECONDS = 1.0
TRACK_SECONDS = 10.0  # MLflow is told in batches: it shares the cores with the training


def run_pipeline(
    config: RunConfig,
    runs: Path,
    data: Path,
    address: str | None = None,
    tracking_uri: str | None = None,
    *,
    trust: bool = False,
) -> RunFolder:
    """Take a recipe from raw text to its report; run again, it goes on where it stopped or does nothing.

    A supervisor: the work is done by a process that it starts again when that, or its Ray cluster, dies.

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
            if address and not answers(address):
                raise UserError(
                    f"no Ray cluster answers at {address}: start one with `ray start --head` or leave --address out"
                )
            dataset = data / config.data.name
            supervise(
                run,
                config,
                drive,
                (config, runs, data, address, tracking_uri, trust),
                address=address,
                progress=lambda: (_latest(run), len(list(run.evals.glob("*/*.json"))), _count(dataset)),
            )
        tracker = Tracker(run.path, tracking_uri)
        report = write_report(run.path)
        write_summary(run.path)
        tracker.sync()
    console.print(f"report: {report}")
    console.print(f"MLflow: {sys.executable} -m mlflow ui --backend-store-uri {tracker.uri}  (http://127.0.0.1:5000)")
    return run


def drive(
    config: RunConfig,
    runs: Path,
    data: Path,
    address: str | None,
    tracking_uri: str | None,
    trust: bool,
    on_cluster: Callable[[], AbstractContextManager[None]],
) -> None:
    """The work of a run on a Ray cluster, in the supervisor's child."""
    run = RunFolder(runs / config.name)
    with ray_cluster(address), on_cluster():
        dataset = prepare_dataset(config.data, data, map_units=ray_data_map)
        print_mixture(config, dataset)
        run.prepare(config, dataset, trust=trust)
        check_run(run, config)
        _train_and_evaluate(run, config, tracking_uri)


def _latest(run: RunFolder) -> str:
    return run.latest_file.read_text(encoding="utf-8") if run.latest_file.is_file() else ""


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _complete(run: RunFolder, config: RunConfig, data: Path) -> bool:
    """Whether every stage of exactly this run is done, so that no cluster need start."""
    if not run.finished():
        return False
    done = dataset_is_complete(config.data, data) and not missing_jobs(run, config)
    if done:
        console.print(f"{run.path}: data, training and evaluations are complete; nothing to do")
    return done


def _train_and_evaluate(run: RunFolder, config: RunConfig, tracking_uri: str | None) -> None:
    """Train in one thread; in this one schedule evaluations, feed MLflow and show progress until all of it is done."""
    evaluation = config.evaluation
    pool = RayPool(evaluation.parallel, cpus=evaluation.cpus, gpus=evaluation.gpus)
    scheduler = Scheduler(lambda: _due(run, config), pool)
    training = _Thread(lambda: train_gang(run, config)) if not run.finished() else None
    with TrainingProgress(run, config) as progress, _Tracking(Tracker(run.path, tracking_uri)):
        while training and training.is_alive():
            scheduler.poll()
            progress.update()
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


class _Tracking:
    """Feeds MLflow from a thread while the context lasts: a server that is down may take a minute to say so."""

    def __init__(self, tracker: Tracker):
        self._tracker, self._over = tracker, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._loop, daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _loop(self) -> None:
        while not self._over.is_set():
            self._tracker.sync()
            self._over.wait(TRACK_SECONDS)


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
