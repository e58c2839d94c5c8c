"""Evaluations of checkpoints as jobs: which are due, who does them, and what becomes of those that fail.

A job is one suite on one checkpoint. It is done when its result file exists; while it is worked on a lease lies beside it, so
that a scheduler, a watcher and a user at the prompt never do the same one. Nothing here is remembered but in files.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from ..evals.config import load_suite
from ..evals.run_layout import complete_checkpoints, result_path, trained_on_recall
from ..models.validation import first_line
from ..pipeline.config import RunConfig
from ..pipeline.node import node_name
from ..pipeline.run_folder import RunFolder
from .leases import claim
from .supervision import tell

ATTEMPTS = 3
# A job that somebody else holds is looked at again after so long.
HELD_SECONDS = 5.0


@dataclass(frozen=True)
class EvaluationJob:
    """One suite on one checkpoint; complete when `output` exists."""

    suite: str
    model: Path
    dataset: Path
    output: Path
    step: int
    tokens: int
    recall_trained: bool = True
    device: str = "cpu"

    @property
    def name(self) -> str:
        """`step_00000100/recall-quick`."""
        return f"{self.output.parent.name}/{self.output.stem}"

    @property
    def run(self) -> RunFolder:
        """The run that it belongs to."""
        return RunFolder(self.output.parents[2])


def wanted_jobs(run: RunFolder, config: RunConfig, suites: Iterable[str] | None = None) -> list[EvaluationJob]:
    """Every job that the run's complete checkpoints call for, done or not, oldest checkpoint first.

    Args:
        suites: instead of the configuration's.
    """
    suites = {name: load_suite(name).name for name in (config.evaluation.suites if suites is None else suites)}
    recall = trained_on_recall(run.path)
    return [
        EvaluationJob(
            suite,
            folder / "model",
            run.data_folder(),
            result_path(run.path, folder.name, name),
            record["step"],
            record["tokens"],
            recall,
        )
        for folder, record in complete_checkpoints(run.path)
        if is_due(
            record["step"],
            steps=config.train.steps,
            batch_tokens=config.train.batch_tokens,
            checkpoint_every=config.run.checkpoint_every,
            every=config.evaluation.every,
            every_tokens=config.evaluation.every_tokens,
        )
        for suite, name in suites.items()
    ]


def missing_jobs(run: RunFolder, config: RunConfig, suites: Iterable[str] | None = None) -> list[EvaluationJob]:
    """The wanted jobs that have no result yet."""
    return [job for job in wanted_jobs(run, config, suites) if not job.output.is_file()]


def is_due(
    step: int, *, steps: int, batch_tokens: int, checkpoint_every: int, every: int, every_tokens: int | None
) -> bool:
    """Every so many checkpoints, or the first checkpoint after every so many tokens; the last one always."""
    if step == steps:
        return True
    if every_tokens:
        return step * batch_tokens % every_tokens < checkpoint_every * batch_tokens
    return step % (checkpoint_every * every) == 0


def run_job(job: EvaluationJob, on_progress: Callable[[int, int], None] | None = None) -> bool:
    """Do a job under its lease. False if somebody else is at it.

    Raises:
        UserError: whatever `run_suite` refuses.
    """
    lease = claim(job.output.with_suffix(".lease"))
    if lease is None:
        return False
    from ..evals.run import run_suite  # torch and all; who only looks what is due needs none of it

    with lease:
        run_suite(
            job.model,
            job.suite,
            job.dataset,
            job.output,
            step=job.step,
            tokens=job.tokens,
            device=job.device,
            recall_trained=job.recall_trained,
            on_progress=on_progress,
        )
    return True


class Pool(Protocol):
    """Where jobs run. `done` never blocks; what it returns was submitted before and is forgotten after."""

    size: int

    def submit(self, job: EvaluationJob) -> None: ...

    def done(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        """Ended jobs, the node that did the work (None: held by another), and what went wrong."""
        ...


class Scheduler:
    """Keeps a pool busy with the jobs that are due. Call `poll` now and then; it never blocks."""

    def __init__(self, due: Callable[[], list[EvaluationJob]], pool: Pool):
        self._due, self._pool = due, pool
        self._flying: dict[Path, tuple[EvaluationJob, float]] = {}
        self._failures: dict[Path, list[str]] = {}
        self._held: dict[Path, float] = {}

    def poll(self) -> int:
        """Collect what ended, start what is due; returns the number of jobs still to be done, given-up ones left out."""
        for job, node, error in self._pool.done():
            started = self._flying.pop(job.output, (job, 0.0))[1]
            if error is not None and job.model.is_dir():  # a checkpoint that was removed meanwhile is nobody's failure
                self._failures.setdefault(job.output, []).append(error)
                if len(self._failures[job.output]) == ATTEMPTS:
                    tell(job.run, "evaluation_failed", step=job.step, suite=job.output.stem, message=error)
            elif node is not None:
                seconds = time.monotonic() - started
                tell(job.run, "evaluation", step=job.step, suite=job.output.stem, node=node, seconds=seconds)
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


class RayPool:
    """Jobs as tasks of the connected Ray cluster.

    By default no CPU is reserved: on a machine whose cores all train, a reserved core would never come free, and the
    evaluations' low priority yields instead. With `cpus` or `gpus` they wait for resources of their own.
    """

    def __init__(self, size: int, *, cpus: float = 0, gpus: float = 0):
        self.size, self._cpus, self._gpus = size, cpus, gpus
        self._flying: dict[Any, EvaluationJob] = {}

    def submit(self, job: EvaluationJob) -> None:
        import ray

        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if not self._gpus else {}
        remote = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=ATTEMPTS,
            runtime_env=hidden,
            scheduling_strategy="SPREAD",  # or those that reserve nothing would all crowd one node
        )
        self._flying[remote(_run_on_ray).remote(job)] = job

    def done(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        import ray

        if not self._flying:
            return []
        ended, _ = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        results = []
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()} if ended else {}
        for reference in ended:
            job = self._flying.pop(reference)
            try:
                node = ray.get(reference)
                results.append((job, node and names.get(node, node), None))
            except Exception as error:  # a failed evaluation is counted and reported, never a reason to stop training
                results.append((job, None, str(error).strip().splitlines()[-1]))
        return results


class ProcessPool:
    """Jobs as processes of this machine, without Ray. They die with this process."""

    def __init__(self, size: int):
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._flying: list[tuple[EvaluationJob, Any, Connection]] = []

    def submit(self, job: EvaluationJob) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run_and_tell, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        self._flying.append((job, process, ours))

    def done(self) -> list[tuple[EvaluationJob, str | None, str | None]]:
        ended = [entry for entry in self._flying if not entry[1].is_alive()]
        self._flying = [entry for entry in self._flying if entry not in ended]
        results = []
        for job, process, ours in ended:
            try:
                did, error = ours.recv()
            except EOFError:
                did, error = False, f"its process ended with code {process.exitcode}"
            ours.close()
            results.append((job, node_name() if did else None, error))
        return results


def _run_niced(job: EvaluationJob) -> bool:
    import torch

    if os.nice(0) < 10:
        os.nice(10)
    torch.set_num_threads(1)
    return run_job(job)


def _run_on_ray(job: EvaluationJob) -> str | None:
    """The id of the node that did it, or None."""
    import ray

    return ray.get_runtime_context().get_node_id() if _run_niced(job) else None


def _run_and_tell(job: EvaluationJob, connection: Connection) -> None:
    try:
        connection.send((_run_niced(job), None))
    except Exception as error:
        connection.send((False, first_line(error)))
