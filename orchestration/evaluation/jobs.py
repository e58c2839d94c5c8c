"""Evaluations of checkpoints as jobs: which ones are due, how a job runs under its lease, and how its outcome is recorded.

A job is one suite on one checkpoint. It is done when its result file exists; while it runs, a lease lies beside that file, so
that a scheduler, a watcher and a user never run the same job at once. All state is in files.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ...evals.config import load_suite
from ...evals.layout import complete_checkpoints, is_of_average, name_of_average, result_path, trained_on_recall
from ...models.common.run_layout import EMA, MODEL
from ...pipeline.config import RunConfig
from ...pipeline.run.events import stopped_at
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.supervision import record_event
from ..jobs.job import Job, Resources


@dataclass(frozen=True)
class EvaluationJob(Job):
    """The evaluation of one suite on one checkpoint; complete when `output` exists."""

    suite: str
    model: Path
    dataset: Path
    output: Path
    step: int
    tokens: int
    recall_trained: bool = True
    device: str = "cpu"
    resources: Resources = Job.resources
    timeout_seconds: float | None = None

    @property
    def name(self) -> str:
        """The job's name, such as `step_00000100/recall-quick`."""
        return f"{self.output.parent.name}/{self.output.stem}"

    @property
    def checkpoint_run(self) -> RunFolder:
        """The folder of the run that the checkpoint belongs to."""
        return RunFolder(self.output.parents[2])

    @property
    def leases(self) -> tuple[Path, ...]:
        return (self.output.with_suffix(".lease"),)

    def is_done(self) -> bool:
        return self.output.is_file()

    def is_obsolete(self) -> bool:
        """Whether the checkpoint was removed since the job was made."""
        return not self.model.is_dir()

    def prepare_worker(self) -> None:
        """Limit the worker to one thread at low priority, since training may need the cores."""
        import torch

        if os.nice(0) < 10:
            os.nice(10)
        torch.set_num_threads(1)

    def run(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Evaluate the checkpoint and write the result to `output`.

        Raises:
            UserError: see `run_suite`.
        """
        from ...evals.runner import run_suite  # imports torch, which listing the due jobs does not need

        suite = load_suite(self.suite)
        run_suite(
            self.model,
            suite.model_copy(update={"name": self.output.stem}) if is_of_average(self.output.stem) else suite,
            self.dataset,
            self.output,
            step=self.step,
            tokens=self.tokens,
            device=self.device,
            recall_trained=self.recall_trained,
            on_progress=on_progress,
        )

    def record_success(self, node: str, seconds: float) -> None:
        """Record in the run folder which node evaluated the checkpoint, and how many seconds it took."""
        record_event(
            self.checkpoint_run, "evaluation", step=self.step, suite=self.output.stem, node=node, seconds=seconds
        )

    def record_failure(self, errors: list[str]) -> None:
        """Record in the run folder that this evaluation failed for good."""
        record_event(
            self.checkpoint_run, "evaluation_failed", step=self.step, suite=self.output.stem, message=errors[-1]
        )


def due_jobs(run: RunFolder, config: RunConfig, suites: Iterable[str] | None = None) -> list[EvaluationJob]:
    """All evaluation jobs of the run's complete checkpoints, done or not, oldest checkpoint first.

    Args:
        suites: instead of the configuration's.
    """
    suites = {name: load_suite(name).name for name in (config.evaluation.suites if suites is None else suites)}
    recall = trained_on_recall(run.path)
    minutes = config.evaluation.timeout_minutes
    timeout = None if minutes is None else 60 * minutes
    checkpoints = list(complete_checkpoints(run.path))
    due = due_steps(
        {record["step"]: record["tokens"] for _, record in checkpoints},
        last_step=config.train.steps,
        checkpoint_every=config.run.checkpoint_every,
        every=config.evaluation.every,
        every_tokens=config.evaluation.every_tokens,
        stopped_step=stopped_at(run.events_file),
    )
    return [
        EvaluationJob(
            suite,
            model,
            run.data_folder(),
            result_path(run.path, folder.name, result_name),
            record["step"],
            record["tokens"],
            recall,
            timeout_seconds=timeout,
        )
        for folder, record in checkpoints
        if record["step"] in due
        for suite, name in suites.items()
        for model, result_name in ((folder / MODEL, name), (folder / EMA, name_of_average(name)))
        if model.name == MODEL or model.is_dir()
    ]


def missing_jobs(run: RunFolder, config: RunConfig, suites: Iterable[str] | None = None) -> list[EvaluationJob]:
    """The due jobs that have no result yet."""
    return [job for job in due_jobs(run, config, suites) if not job.output.is_file()]


def due_steps(
    checkpoints: Mapping[int, int],
    *,
    last_step: int,
    checkpoint_every: int,
    every: int,
    every_tokens: int | None,
    stopped_step: int | None,
) -> set[int]:
    """The steps of the existing checkpoints that are to be evaluated.

    The first one at or after every multiple of `every` times `checkpoint_every` steps, or of `every_tokens` tokens; and that at
    which training ended, or stopped.

    Args:
        checkpoints: step and tokens of the complete checkpoints, ascending.
        stopped_step: where training stopped or finished (`events.stopped_at`).
    """
    positions = checkpoints if every_tokens else {step: step for step in checkpoints}
    period = every_tokens or checkpoint_every * every
    reached = {
        step for (_, before), (step, now) in pairwise([(0, 0), *positions.items()]) if now // period > before // period
    }
    return {step for step in checkpoints if step in reached or step in (last_step, stopped_step)}
