"""Evaluations of a run's checkpoints as Ray tasks beside the training, which they never block."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evals.config import load_suite
from ..evals.run import complete_checkpoints, result_path
from ..pipeline.config import RunConfig
from ..pipeline.run_folder import RunFolder

ATTEMPTS = 3


@dataclass(frozen=True)
class EvaluationJob:
    """One suite on one checkpoint; complete when `output` exists."""

    suite: str
    model: Path
    dataset: Path
    output: Path
    step: int
    tokens: int


def wanted_jobs(run: RunFolder, config: RunConfig) -> list[EvaluationJob]:
    """Every job that the run's complete checkpoints call for, done or not, oldest checkpoint first."""
    jobs = []
    for folder, record in complete_checkpoints(run.path):
        step = record["step"]
        if step % (config.run.checkpoint_every * config.evaluation.every) and step != config.train.steps:
            continue
        for suite in config.evaluation.suites:
            output = result_path(run.path, folder.name, load_suite(suite).name)
            jobs.append(EvaluationJob(suite, folder / "model", run.data_folder(), output, step, record["tokens"]))
    return jobs


def missing_jobs(run: RunFolder, config: RunConfig) -> list[EvaluationJob]:
    """The wanted jobs that have no result yet."""
    return [job for job in wanted_jobs(run, config) if not job.output.is_file()]


class EvaluationScheduler:
    """Keeps up to `config.evaluation.parallel` jobs in flight on a connected Ray cluster. Call `poll` now and then."""

    def __init__(self, run: RunFolder, config: RunConfig):
        self._run, self._config = run, config
        self._flying: dict[Any, EvaluationJob] = {}
        self._failures: dict[Path, list[str]] = {}

    def poll(self) -> int:
        """Collect what ended, start what is due; returns the number of jobs still to be done."""
        import ray

        if self._flying:
            ended, _ = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
            for reference in ended:
                job = self._flying.pop(reference)
                try:
                    ray.get(reference)
                except (
                    Exception
                ) as error:  # a failed evaluation is counted and reported, never a reason to stop training
                    self._failures.setdefault(job.output, []).append(str(error).strip().splitlines()[-1])
        flying = {job.output for job in self._flying.values()}
        due = [
            job for job in missing_jobs(self._run, self._config) if len(self._failures.get(job.output, ())) < ATTEMPTS
        ]
        for job in due:
            if len(self._flying) >= self._config.evaluation.parallel:
                break
            if job.output not in flying:
                self._flying[_remote_evaluate().remote(job)] = job
        return len(due)

    def given_up(self) -> dict[str, str]:
        """`step_x/suite` -> last error of the jobs that failed for good."""
        return {
            f"{output.parent.name}/{output.stem}": errors[-1]
            for output, errors in self._failures.items()
            if len(errors) >= ATTEMPTS
        }


def _remote_evaluate() -> Any:
    import ray

    # No CPU is reserved: on a machine whose cores all train, a reserved core would never come free. `nice` yields instead.
    return ray.remote(num_cpus=0, max_retries=ATTEMPTS, runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}})(
        _evaluate
    )


def _evaluate(job: EvaluationJob) -> None:
    import torch

    from ..evals.run import run_suite

    if os.nice(0) < 10:
        os.nice(10)
    torch.set_num_threads(1)
    run_suite(job.model, job.suite, job.dataset, job.output, step=job.step, tokens=job.tokens, device="cpu")
