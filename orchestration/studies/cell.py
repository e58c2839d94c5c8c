"""Runs of a study as jobs, each in a process of its own, since DeepSpeed trains only once per process."""

import time
from dataclasses import dataclass
from pathlib import Path

from ...evals.config import load_suite
from ...evals.layout import complete_checkpoints, result_path, trained_on_recall
from ...evals.runner import run_suite
from ...models.common.errors import UserError
from ...models.common.files import write_json
from ...models.common.run_layout import MODEL
from ...pipeline.compilation.beside import start_compilation
from ...pipeline.config import RunConfig
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.stop_request import clear_stop_request, request_stop
from ..jobs.job import Job, Resources, worker_started
from .plan import Plan, StudyCell
from .results import collect, read_result, write_result
from .trunks.branching import can_begin, start_from


@dataclass(frozen=True)
class StudyJob(Job):
    """A run of a study as a job.

    Attributes:
        folder: of the run; its lease and its log lie beside it.
        failure_file: exists if every attempt of the last command failed.
    """

    plan: Plan
    cell: StudyCell
    config: RunConfig
    folder: Path
    dataset: Path
    failure_file: Path
    own_process = True
    stops_on_request = True

    @property
    def name(self) -> str:
        return f"{'trunk' if self.cell.kind == 'trunk' else 'cell'} {self.cell.name}"

    @property
    def leases(self) -> tuple[Path, ...]:
        return (lease_path(self.folder),)

    @property
    def log(self) -> Path:
        return log_file(self.folder)

    @property
    def resources(self) -> Resources:
        hardware, share = self.plan.study.hardware, self.cell.occupied
        if hardware.device == "cuda":
            return Resources(share, gpus=float(share))
        return Resources(share, cpus=float(hardware.threads * share))

    def ask_to_stop(self) -> None:
        request_stop(RunFolder(self.folder), "the end of the study's command")

    def train(self, run: RunFolder) -> None:
        """Train a run in this process, or with a worker group of this machine if it has several workers.

        Raises:
            UserError: damaged data, or a loss that is not finite.
        """
        from ...pipeline.launch import launch

        config = run.load_config()
        if config.run.workers > 1:
            launch(run, config)
            return
        compilation = start_compilation(run.path)
        from ...pipeline.loop import train

        train(run.path, compilation)

    def record_success(self, node: str, seconds: float) -> None:
        """Remove the failure file of an earlier command."""
        self.failure_file.unlink(missing_ok=True)

    def record_failure(self, errors: list[str]) -> None:
        """Write the failure file."""
        write_json(self.failure_file, {"errors": errors, "time": time.time()})


@dataclass(frozen=True)
class CellJob(StudyJob):
    """The training of a cell, the evaluation of its last checkpoint, and its record; resumes an earlier attempt.

    Attributes:
        trunk: folder of the trunk that it branches from; None if it is trained from its first step on.
    """

    trunk: Path | None = None

    def can_begin(self) -> bool:
        """Whether the cell can begin: it has no trunk, or its trunk has reached the step from which it branches."""
        return self.trunk is None or can_begin(self.cell, self.folder, self.trunk)

    def is_done(self) -> bool:
        """Whether the cell has its record.

        Raises:
            UserError: the record is of another configuration.
        """
        result = read_result(result_file(self.folder))
        if result is None:
            return False
        if result.identity != self.config.identity():
            raise UserError(
                f"{self.folder} was trained with another configuration than the study now asks for: "
                "name the changed study anew, or move that folder away"
            )
        return True

    def run(self) -> None:
        """Train, evaluate, write the record, whose seconds count from this worker's start.

        Raises:
            UserError: a folder of another run, damaged data, or a loss that is not finite.
        """
        run, config, started = RunFolder(self.folder.resolve()), self.config, worker_started()
        self._prepare(run)
        clear_stop_request(run)
        if not run.finished():
            self.train(run)
        if not run.finished():
            raise UserError(f"{run.path} was stopped before its end; it goes on from its last checkpoint")
        checkpoint, record = list(complete_checkpoints(run.path))[-1]
        device = "cuda" if config.run.device == "cuda" else "cpu"
        for name in config.evaluation.suites:
            suite = load_suite(name)
            try:
                run_suite(
                    checkpoint / MODEL,
                    suite,
                    self.dataset,
                    result_path(run.path, checkpoint.name, suite.name),
                    step=record["step"],
                    tokens=record["tokens"],
                    device=device,
                    recall_trained=trained_on_recall(run.path),
                )
            except UserError as error:
                raise UserError(
                    f"cell {self.cell.name} cannot be measured: {error}. A study keeps one checkpoint of a cell: if it is "
                    f"damaged, remove {run.path} and run the study again, which trains this cell anew"
                ) from error
        result = collect(self.plan, self.cell, run.path, config.identity(), config.train.learning_rate, started)
        write_result(result_file(self.folder), result)

    def _prepare(self, run: RunFolder) -> None:
        """Set up the run's folder, as a branch of the trunk if the cell has one."""
        if self.trunk is None:
            run.prepare(self.config, self.dataset.resolve())
            return
        start = start_from(self.cell, run.path, self.trunk)
        try:
            run.prepare(self.config.model_copy(update={"start_from": start}), self.dataset.resolve())
        except UserError as error:
            raise UserError(
                f"cell {self.cell.name} cannot branch from {self.trunk}: {error}. If a checkpoint of the trunk is damaged, remove "
                "its folder: what it had is trained again"
            ) from error


def lease_path(folder: Path) -> Path:
    """The lease file of a cell: `leases/<cell>.lease` beside the folder of runs."""
    return folder.parent.parent / "leases" / f"{folder.name}.lease"


def result_file(folder: Path) -> Path:
    """The completion file of a cell."""
    return folder / "cell.json"


def log_file(folder: Path) -> Path:
    """The log of a cell's attempts: `logs/<cell>.log` beside the folder of runs."""
    return folder.parent.parent / "logs" / f"{folder.name}.log"
