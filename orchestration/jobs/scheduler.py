"""A scheduler that keeps a pool of workers busy with the jobs that are due."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

ATTEMPTS = 3
# A job that somebody else holds is looked at again after so long.
HELD_SECONDS = 5.0


class Job(Protocol):
    """Work that ends in one file: complete when `output` exists."""

    output: Path

    @property
    def name(self) -> str: ...

    def obsolete(self) -> bool:
        """Whether what it works on was removed meanwhile: its failure then counts for nothing."""
        ...

    def record_success(self, node: str, seconds: float) -> None: ...

    def record_failure(self, message: str) -> None:
        """Called once, when the job has failed `ATTEMPTS` times."""
        ...


class Pool(Protocol):
    """Where jobs run. `done` never blocks; what it returns was submitted before and is forgotten after."""

    size: int

    def submit(self, job: Job) -> None: ...

    def done(self) -> list[tuple[Job, str | None, str | None]]:
        """Ended jobs, the node that did the work (None: held by another), and what went wrong."""
        ...


class Scheduler:
    """Keeps a pool busy with the jobs that are due. Call `poll` now and then; it never blocks."""

    def __init__(self, due: Callable[[], list[Job]], pool: Pool):
        self._due, self._pool = due, pool
        self._flying: dict[Path, tuple[Job, float]] = {}
        self._failures: dict[Path, list[str]] = {}
        self._held: dict[Path, float] = {}

    def poll(self) -> int:
        """Collect what ended, start what is due; returns the number of jobs still to be done, given-up ones left out."""
        for job, node, error in self._pool.done():
            started = self._flying.pop(job.output, (job, 0.0))[1]
            if error is not None and not job.obsolete():
                self._failures.setdefault(job.output, []).append(error)
                if len(self._failures[job.output]) == ATTEMPTS:
                    job.record_failure(error)
            elif node is not None:
                job.record_success(node, time.monotonic() - started)
            else:
                self._held[job.output] = time.monotonic() + HELD_SECONDS
        due = [job for job in self._due() if len(self._failures.get(job.output, ())) < ATTEMPTS]
        for job in due:
            if len(self._flying) >= self._pool.size:
                break
            if job.output not in self._flying and time.monotonic() >= self._held.get(job.output, 0):
                self._flying[job.output] = job, time.monotonic()
                self._pool.submit(job)
        return len(due)

    def given_up(self) -> dict[str, str]:
        """`step_x/suite` -> last error of the jobs that failed for good."""
        return {
            f"{output.parent.name}/{output.stem}": errors[-1]
            for output, errors in self._failures.items()
            if len(errors) >= ATTEMPTS
        }
