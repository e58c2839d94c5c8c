"""The scheduler, which starts due jobs where there is room and retries jobs that failed."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...models.common.retries import pause_seconds
from ..progress.bars import console
from .executors import Executor
from .job import Job, is_held

ATTEMPTS = 3
POLL_SECONDS = 0.5
HELD_SECONDS = 5.0  # until a job that another process holds is looked at again


class Scheduler:
    """Runs the due jobs on an executor. All other state is in the files of the jobs.

    A job that fails is tried again after a growing pause, `attempts` times in all. One that another process holds is left to it,
    and done here if that process dies.

    Args:
        due: returns the jobs without a result, the first to be started first. Called in every poll.
        until: `time.monotonic()` after which no job may end; `seconds(job)` predicts how long it takes.
    """

    def __init__(
        self,
        due: Callable[[], Sequence[Job]],
        executor: Executor,
        *,
        attempts: int = ATTEMPTS,
        until: float = math.inf,
        seconds: Callable[[Job], float] = lambda job: 0.0,
    ):
        self._due, self._executor, self._attempts = due, executor, attempts
        self._until, self._seconds = until, seconds
        self._running: dict[Path, tuple[Job, float]] = {}
        self._errors: dict[Path, list[str]] = {}
        self._failed: dict[Path, Job] = {}
        self._not_before: dict[Path, float] = {}

    @property
    def running(self) -> list[Job]:
        """The jobs that are running."""
        return [job for job, _ in self._running.values()]

    @property
    def failed(self) -> list[Job]:
        """The jobs whose every attempt failed."""
        return list(self._failed.values())

    def poll(self) -> int:
        """Collect attempts that ended and start due jobs; never waits.

        Returns:
            The number of jobs that run, or that are due and can end in time; without those that failed for good.
        """
        for ended in self._executor.collect_ended():
            self._collect(*ended)
        open_jobs = [job for job in self._due() if job.leases[0] not in self._failed]
        waiting = [job for job in open_jobs if job.leases[0] not in self._running and self._in_time(job)]
        for job in waiting:
            key = job.leases[0]
            if time.monotonic() < self._not_before.get(key, 0.0) or not self._executor.has_room(job):
                continue
            if is_held(job):
                self._not_before[key] = time.monotonic() + HELD_SECONDS
                continue
            self._executor.start(job)
            self._running[key] = job, time.monotonic()
        return len(self._running.keys() | {job.leases[0] for job in waiting})

    def run(self, on_poll: Callable[[], None] = lambda: None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Poll until every job is done, failed for good, or cannot end in time any more, or until the time is up or `stopped()`.

        A job that failed and has no time left for another attempt has failed for good. Jobs that run when the time is up are left
        to the end of the executor's context, which stops them.
        """
        while not stopped() and self.poll() and time.monotonic() <= self._until:
            on_poll()
            time.sleep(POLL_SECONDS)
        for job in self._due() if not stopped() else ():
            key = job.leases[0]
            if key in self._errors and key not in self._failed and key not in self._running:
                self._fail(job)

    def failures(self) -> dict[str, str]:
        """Last error of each job whose every attempt failed, by its name."""
        return {job.name: self._errors[key][-1] for key, job in self._failed.items()}

    def _collect(self, job: Job, node: str | None, error: str | None) -> None:
        key = job.leases[0]
        # A job of the executor's earlier scheduler is none of `_running`.
        _, started = self._running.pop(key, (job, time.monotonic()))
        if node is not None and not job.is_done():
            error = "it ended without a result"
        if error is not None:
            if job.is_obsolete():
                return
            errors = self._errors.setdefault(key, [])
            errors.append(error)
            console.print(f"{job.name}, attempt {len(errors)} of {self._attempts}: {error}", markup=False)
            self._not_before[key] = time.monotonic() + pause_seconds(len(errors))
            if len(errors) >= self._attempts:
                self._fail(job)
        elif node is not None:
            self._errors.pop(key, None)
            job.record_success(node, time.monotonic() - started)
        else:
            self._not_before[key] = time.monotonic() + HELD_SECONDS

    def _fail(self, job: Job) -> None:
        self._failed[job.leases[0]] = job
        job.record_failure(self._errors[job.leases[0]])

    def _in_time(self, job: Job) -> bool:
        return self._until == math.inf or time.monotonic() + self._seconds(job) <= self._until
