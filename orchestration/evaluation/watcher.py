"""`echo-lm eval --watch`: evaluates whatever appears in run folders, also of runs it did not start; never ends by itself.

Each round looks at the files, does what has no result, then brings summaries and MLflow up to date. Nothing is remembered
between rounds but what MLflow still lacks. On a Ray cluster a round is a process of its own: when Ray's head dies it takes that
process with it, and the next round does what is left.
"""

import glob
import importlib.util
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from ...evals.summary import write_summary
from ...models.common.errors import UserError
from ...pipeline.run.folder import RunFolder
from ..jobs.scheduler import Pool, Scheduler
from ..progress.bars import console
from .jobs import EvaluationJob, missing_jobs
from .pools import ProcessPool, RayPool

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
LOOK_SECONDS, SILENT_SECONDS = 3.0, 60.0
TELL_SECONDS = 20.0


class Watcher:
    """Rounds of evaluation over the runs that match a pattern.

    Args:
        pattern: of run folders, `runs/*`; folders that hold no run yet are looked at again in every round.
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
        self._behind: set[Path] = set()  # runs of which MLflow lacks something
        self._telling: threading.Thread | None = None
        self._seen: dict[Path, list[tuple[str, int]]] = {}
        self._told: set[Path] = set()  # runs of which it was said that MLflow lacks something

    def watch(self, every_seconds: float) -> None:
        """Rounds for ever, one every so often; at once again when one was cut short."""
        while True:
            complete = self.round()
            time.sleep(every_seconds if complete else min(RETRY_SECONDS, every_seconds))

    def round(self) -> bool:
        """Do what is missing. True if nothing is left, False if the round was cut short or MLflow lacks something."""
        complete = self._evaluate()
        for run in _runs(self.pattern):
            results = sorted((str(path), path.stat().st_mtime_ns) for path in run.evals.glob("*/*.json"))
            if results and self._seen.get(run.path) != results:
                write_summary(run.path)
                self._seen[run.path] = results
                self._behind.add(run.path)
        self._record()
        return complete and not self._behind

    def _evaluate(self) -> bool:
        if self.address is None:
            evaluate_missing(self.pattern, self.suites, self.device, ProcessPool(self.parallel))
            return True
        context = multiprocessing.get_context("spawn")
        heartbeat = context.Value("d", time.time())
        arguments = (self.pattern, self.suites, self.device, self.parallel, self.address, heartbeat)
        process = context.Process(target=_round_on_ray, args=arguments, daemon=True)
        process.start()
        while process.is_alive():
            process.join(POLL_SECONDS)
            if time.time() - heartbeat.value > SILENT_SECONDS:  # a client of a dead head may hang for ever
                process.kill()
        if process.exitcode:
            console.print(f"Ray at {self.address} ended the round (code {process.exitcode}); trying again")
        return process.exitcode == 0

    def _record(self) -> None:
        """Tell MLflow, in a thread: one that is down takes up to minutes to say so, and evaluations do not wait for it."""
        if self._telling is None or not self._telling.is_alive():
            self._telling = threading.Thread(target=self._tell, daemon=True)
            self._telling.start()
        self._telling.join(TELL_SECONDS)

    def _tell(self) -> None:
        for path in sorted(self._behind):
            if self._sync(path):
                self._behind.discard(path)

    def _sync(self, path: Path) -> bool:
        if importlib.util.find_spec("mlflow") is None:
            if not self._told:
                console.print("MLflow: not installed here; `echo-lm track` replays the files elsewhere")
            self._told.add(path)
            return True
        from ..tracking.mlflow import Tracker

        # A new one asks MLflow what it has: the run may have been started anew, or tracked by somebody else.
        sent = Tracker(path, self.uri, outage_told=path in self._told).sync()
        (self._told.discard if sent else self._told.add)(path)
        return sent


def evaluate_missing(
    pattern: str, suites: list[str] | None, device: str, pool: Pool, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Do every missing job of the matching runs, as they appear; returns when none is left, or only given-up ones."""
    scheduler = Scheduler(partial(_due, pattern, suites, device), pool)
    while scheduler.poll():
        on_poll()
        time.sleep(POLL_SECONDS)
    for name, reason in scheduler.given_up().items():
        console.print(f"evaluation {name} failed: {reason}")


def _due(pattern: str, suites: list[str] | None, device: str) -> list[EvaluationJob]:
    jobs = []
    for run in _runs(pattern):
        try:
            found = missing_jobs(run, run.load_config(), suites)
        except UserError:  # a run that is being set up, or is not ours to mend: the others go on
            continue
        jobs += [replace(job, device=device) for job in found]
    return jobs


def _runs(pattern: str) -> list[RunFolder]:
    return [run for path in sorted(glob.glob(pattern)) if (run := RunFolder(path)).exists() and run.data_file.is_file()]


def _round_on_ray(
    pattern: str, suites: list[str] | None, device: str, parallel: int, address: str, heartbeat: Synchronized
) -> None:
    from ..jobs.cluster import ray_cluster

    gpus = 1.0 if device == "cuda" else 0.0
    with ray_cluster(address):
        import ray

        me, looked = ray.get_runtime_context().get_node_id(), time.time()

        def check() -> None:
            """A head that was started again at the same address knows nothing of us, and Ray does not tell."""
            nonlocal looked
            heartbeat.value = time.time()
            if time.time() - looked > LOOK_SECONDS:
                looked = time.time()
                if me not in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
                    os._exit(1)  # a clean shutdown would wait for the dead

        evaluate_missing(pattern, suites, device, RayPool(parallel, gpus=gpus), check)
