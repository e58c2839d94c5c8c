"""Evaluations of checkpoints as jobs: which are due, who does them, and what becomes of those that fail.

A job is one suite on one checkpoint. It is done when its result file exists; while it is worked on a lease lies beside it, so
that a scheduler, a watcher and a user at the prompt never do the same one. Nothing here is remembered but in files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...evals.config import load_suite
from ...evals.layout import complete_checkpoints, result_path, trained_on_recall
from ...models.common.run_layout import MODEL
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.supervision import record_event
from ..jobs.leases import claim


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

    def obsolete(self) -> bool:
        """Whether the checkpoint was removed meanwhile."""
        return not self.model.is_dir()

    def record_success(self, node: str, seconds: float) -> None:
        """Write down in the run folder who evaluated, and for how long."""
        record_event(self.run, "evaluation", step=self.step, suite=self.output.stem, node=node, seconds=seconds)

    def record_failure(self, message: str) -> None:
        """Write down in the run folder that this evaluation is given up."""
        record_event(self.run, "evaluation_failed", step=self.step, suite=self.output.stem, message=message)


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
            folder / MODEL,
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
    from ...evals.runner import run_suite  # torch and all; who only looks what is due needs none of it

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
