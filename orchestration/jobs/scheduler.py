"""A scheduler that fills a pool of workers with the jobs that are due."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

ATTEMPTS = 3
# A job that another process holds is tried again after so long.
HELD_SECONDS = 5.0


class Job(Protocol):
    """A unit of work with one output file; complete when `output` exists."""

    output: Path

    @property
    def name(self) -> str: ...

    def obsolete(self) -> bool:
        """Whether the input of the job was removed meanwhile; its failure is then ignored."""
        ...

    def record_success(self, node: str, seconds: float) -> None: ...

    def record_failure(self, message: str) -> None:
        """Record a failure for good; called once, after `ATTEMPTS` failed attempts."""
        ...


class Pool(Protocol):
    """Workers that run jobs. `collect_ended` never blocks and returns each submitted job once."""

    size: int

    def submit(self, job: Job) -> None: ...

    def collect_ended(self) -> list[tuple[Job, str | None, str | None]]:
        """Jobs that ended since the last call, each with the node that did it (None: held by another process) and its error."""
        ...


class Scheduler:
    """Fills a pool with the jobs that are due. Call `poll` repeatedly; it never blocks."""

    def __init__(self, due: Callable[[], list[Job]], pool: Pool):
        self._due, self._pool = due, pool
        self._running: dict[Path, tuple[Job, float]] = {}
        self._errors: dict[Path, list[str]] = {}
        self._retry_times: dict[Path, float] = {}

    def poll(self) -> int:
        """Collect ended jobs and start due ones; returns the number of unfinished jobs, without those that failed for good."""
        for job, node, error in self._pool.collect_ended():
            started = self._running.pop(job.output, (job, 0.0))[1]
            if error is not None and not job.obsolete():
                self._errors.setdefault(job.output, []).append(error)
                if len(self._errors[job.output]) == ATTEMPTS:
                    job.record_failure(error)
            elif node is not None:
                job.record_success(node, time.monotonic() - started)
            else:
                self._retry_times[job.output] = time.monotonic() + HELD_SECONDS
        due = [job for job in self._due() if len(self._errors.get(job.output, ())) < ATTEMPTS]
        for job in due:
            if len(self._running) >= self._pool.size:
                break
            if job.output not in self._running and time.monotonic() >= self._retry_times.get(job.output, 0):
                self._running[job.output] = job, time.monotonic()
                self._pool.submit(job)
        return len(due)

    def failures(self) -> dict[str, str]:
        """Last error of the jobs that failed for good, by `step_x/suite`."""
        return {
            f"{output.parent.name}/{output.stem}": errors[-1]
            for output, errors in self._errors.items()
            if len(errors) >= ATTEMPTS
        }
