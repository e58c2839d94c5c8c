"""The interface of jobs: units of work that any process may do, but only one at a time."""

import multiprocessing
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from .leases import claim, holder


@dataclass(frozen=True)
class Resources:
    """The resources that a job occupies while it runs.

    Attributes:
        share: of one of this machine's devices, or how many of them, for `ProcessExecutor`; exact, so that three thirds make a
            whole.
        cpus, gpus: reserved in the Ray cluster, for `RayExecutor`; 0 reserves nothing.
    """

    share: Fraction = Fraction(1)
    cpus: float = 0
    gpus: float = 0


class Job(ABC):
    """A unit of work whose result is in files, so that a restarted scheduler finds what is done. Travels to workers by pickle.

    Attributes:
        resources: what it occupies while it runs.
        log: file that gets what its worker prints; None leaves the worker's output where it goes.
        own_process: whether its worker must not have run another job before it.
        timeout_seconds: a worker that takes longer is killed, and the attempt has failed; None for no limit.
        stops_on_request: whether `ask_to_stop` has an effect.
    """

    resources = Resources()
    log: Path | None = None
    own_process = False
    timeout_seconds: float | None = None
    stops_on_request = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the job in messages."""

    @property
    @abstractmethod
    def leases(self) -> tuple[Path, ...]:
        """The files of the leases that its worker holds; the first one identifies the job."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the result of the job exists."""

    @abstractmethod
    def run(self, **options: Any) -> None:
        """Do the work in this process; its leases are held."""

    def is_obsolete(self) -> bool:
        """Whether its input was removed meanwhile, so that its failure is of no interest."""
        return False

    def ask_to_stop(self) -> None:  # noqa: B027 - optional
        """Ask its worker, wherever it runs, to save its state and end soon. Only where `stops_on_request`."""

    def prepare_worker(self) -> None:  # noqa: B027 - optional
        """Set up the worker's process (priority, threads) before the leases are claimed."""

    def record_success(self, node: str, seconds: float) -> None:  # noqa: B027 - optional
        """Record that `node` did the work, `seconds` after it was started."""

    def record_failure(self, errors: list[str]) -> None:  # noqa: B027 - optional
        """Record that every attempt failed; `errors` has a line for each."""


def run_under_leases(job: Job, **options: Any) -> bool:
    """Run a job unless it is done already; False if another process holds it.

    Args:
        options: of the job's `run`.

    Raises:
        Exception: the job's own.
    """
    with ExitStack() as held:
        for path in job.leases:
            lease = claim(path)
            if lease is None:
                return False
            held.enter_context(lease)
        if not job.is_done():
            job.run(**options)
    return True


def is_held(job: Job) -> bool:
    """Whether some process holds one of the job's leases."""
    return any(holder(path) is not None for path in job.leases)


def worker_started() -> float:
    """When this worker began, in unix seconds: at its creation if it was spawned for one job, else now."""
    return time.time() if multiprocessing.parent_process() is None else psutil.Process().create_time()
