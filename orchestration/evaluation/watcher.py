"""The watcher `echo-lm eval --watch`, which evaluates new checkpoints of all runs that match a pattern until it is interrupted.

Each round reads the files, runs the evaluations without a result, then updates summaries and MLflow. The only state between
rounds is which runs MLflow lacks. On a Ray cluster a round is a process of its own, since Ray ends it when the head dies; the next
round does the rest.
"""

import contextlib
import glob
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from ...evals.layout import result_files
from ...evals.summary import write_summary
from ...models.common.cached_files import Stamp, stamp
from ...models.common.errors import UserError
from ...models.common.parent import end_with_parent
from ...pipeline.run.folder import RunFolder
from ..jobs.executors import Executor, ProcessExecutor
from ..jobs.job import Resources
from ..jobs.ray_executor import RayExecutor
from ..jobs.scheduler import Scheduler
from ..progress.bars import console
from .jobs import EvaluationJob, missing_jobs

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
CHECK_SECONDS, SILENT_SECONDS = 3.0, 60.0
SYNC_SECONDS = 20.0


class Watcher:
    """Rounds of evaluation over the runs that match a pattern.

    Args:
        pattern: of run folders, `runs/*`; folders that hold no run yet are checked again in every round.
        suites: instead of those that each run's configuration names.
        parallel: jobs at once.
        device: of the jobs, "cpu" or "cuda".
        address: of a Ray cluster; without one the jobs are processes of this machine.
        tracking_uri: of MLflow; beside the runs if None.
    """

    def __init__(
        self,
        pattern: str,
        *,
        suites: Iterable[str] | None = None,
        parallel: int = 1,
        device: str = "cpu",
        address: str | None = None,
        tracking_uri: str | None = None,
    ):
        self.pattern, self.suites = pattern, list(suites) if suites else None
        self.parallel, self.device, self.address, self.uri = parallel, device, address, tracking_uri
        self._unsynced: set[Path] = set()  # runs with results that MLflow lacks
        self._sync_thread: threading.Thread | None = None
        self._summarized: dict[Path, list[tuple[Path, Stamp]]] = {}
        self._outage_logged: set[Path] = set()  # runs whose outage of MLflow was logged

    def watch(self, every_seconds: float) -> None:
        """Run a round every `every_seconds`, without end; sooner after one that was cut short."""
        while True:
            complete = self.round()
            time.sleep(every_seconds if complete else min(RETRY_SECONDS, every_seconds))

    def round(self) -> bool:
        """Run the missing evaluations; False if the round was cut short or MLflow lacks results."""
        complete = self._evaluate()
        for run in _runs(self.pattern):
            results = [(path, stamp(path)) for path in result_files(run.path)]
            if results and self._summarized.get(run.path) != results:
                write_summary(run.path)
                self._summarized[run.path] = results
                self._unsynced.add(run.path)
        self._update_mlflow()
        return complete and not self._unsynced

    def _evaluate(self) -> bool:
        if self.address is None:
            with ProcessExecutor(self.parallel) as executor:
                evaluate_missing(self.pattern, self.suites, self.device, executor)
            return True
        context = multiprocessing.get_context("spawn")
        heartbeat = context.Value("d", time.time())
        arguments = (self.pattern, self.suites, self.device, self.parallel, self.address, heartbeat)
        process = context.Process(target=_round_on_ray, args=arguments, daemon=True)
        process.start()
        while process.is_alive():
            process.join(POLL_SECONDS)
            if time.time() - heartbeat.value > SILENT_SECONDS:  # a client of a dead head may hang without end
                process.kill()
        if process.exitcode:
            console.print(f"Ray at {self.address} ended the round (code {process.exitcode}); trying again")
        return process.exitcode == 0

    def _update_mlflow(self) -> None:
        """Update MLflow in a thread: calls to a server that is down take minutes to fail, and evaluations do not wait."""
        if self._sync_thread is None or not self._sync_thread.is_alive():
            self._sync_thread = threading.Thread(target=self._sync_all, daemon=True)
            self._sync_thread.start()
        self._sync_thread.join(SYNC_SECONDS)

    def _sync_all(self) -> None:
        for path in sorted(self._unsynced):
            if self._sync(path):
                self._unsynced.discard(path)

    def _sync(self, path: Path) -> bool:
        if importlib.util.find_spec("mlflow") is None:
            if not self._outage_logged:
                console.print("MLflow: not installed here; `echo-lm track` replays the files elsewhere")
            self._outage_logged.add(path)
            return True
        from ..tracking.mlflow import Tracker

        # A new tracker reads MLflow's state: the run may have been restarted, or tracked by another process.
        sent = Tracker(path, self.uri, outage_logged=path in self._outage_logged).sync(alive=None)
        (self._outage_logged.discard if sent else self._outage_logged.add)(path)
        return sent


def evaluate_missing(
    pattern: str, suites: list[str] | None, device: str, executor: Executor, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Run every missing job of the matching runs, also new ones; returns when all are done or failed for good."""
    scheduler = Scheduler(partial(_due, pattern, suites, device), executor)
    scheduler.run(on_poll)
    for name, reason in scheduler.failures().items():
        console.print(f"evaluation {name} failed: {reason}", markup=False)


def _due(pattern: str, suites: list[str] | None, device: str) -> list[EvaluationJob]:
    resources = Resources(gpus=1.0 if device == "cuda" else 0.0)
    jobs = []
    for run in _runs(pattern):
        try:
            missing = missing_jobs(run, run.load_config(), suites)
        except UserError:  # a run that is being set up, or is damaged: the others go on
            continue
        jobs += [replace(job, device=device, resources=resources) for job in missing]
    return jobs


def _runs(pattern: str) -> list[RunFolder]:
    return [run for path in sorted(glob.glob(pattern)) if (run := RunFolder(path)).exists() and run.data_file.is_file()]


def _round_on_ray(
    pattern: str, suites: list[str] | None, device: str, parallel: int, address: str, heartbeat: Synchronized
) -> None:
    end_with_parent()
    from ..jobs.cluster import ClusterUnavailable, ray_cluster

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(ray_cluster(address))
        except ClusterUnavailable as error:
            console.print(str(error), markup=False)
            sys.exit(1)
        import ray

        node_id, checked_at = ray.get_runtime_context().get_node_id(), time.time()

        def check() -> None:
            """Exit if the head was restarted at the same address: it does not list this node, and Ray reports nothing."""
            nonlocal checked_at
            heartbeat.value = time.time()
            if time.time() - checked_at > CHECK_SECONDS:
                checked_at = time.time()
                if node_id not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
                    os._exit(1)  # a clean shutdown would wait for the dead cluster

        with RayExecutor(parallel) as executor:
            evaluate_missing(pattern, suites, device, executor, check)
