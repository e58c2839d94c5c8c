"""Results of finished cells: one typed record per cell, which is its completion file."""

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ...evals.config import load_suite
from ...evals.layout import result_path
from ...models.accounting import state_bytes
from ...models.common.config import Record
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json
from ...pipeline.run.reader import RunFiles
from .config import StudyConfig
from .plan import Plan, StudyCell

FILE_NAME = "cell.json"


class RecallRow(Record):
    """Accuracy of one recall task at one number of pairs and one length; `state_bytes` of one sequence at that length."""

    task: str
    label: str
    pairs: int
    length: int
    queries: int
    correct: int
    chance: float
    state_bytes: int


class CellResult(Record):
    """The result of a finished cell.

    Attributes:
        identity: of its run's configuration.
        loss: the metric `evaluation.loss` of the study when the cell was measured.
        suites: the suites that measured `metrics` and `recall`: name -> SHA-256 of what they measure (sample, context, tasks);
            empty in records of earlier versions, which do not say it.
        learning_rate: its peak.
        seconds: of training and evaluation, over all attempts, and of the last one's start; `training_seconds` of its steps
            alone.
        tokens_per_second: median over the steps.
        starts: how often its training was started.
        trunk_content: content hash of the trunk's checkpoint that it branched from; None without.
    """

    cell: StudyCell
    identity: str
    loss: float
    metrics: dict[str, float]
    suites: dict[str, str] = Field(default={})
    recall: tuple[RecallRow, ...]
    learning_rate: float
    seconds: float
    training_seconds: float
    tokens_per_second: float
    starts: int
    hardware: str
    host: str
    git_commit: str | None
    versions: dict[str, str | None]
    trunk_content: str | None = None

    @property
    def tflops(self) -> float:
        """TFLOP/s that the cell's process or worker group reached in training steps, by the FLOPs of `models/accounting.py`."""
        return self.tokens_per_second * self.cell.flops / self.cell.tokens / 1e12

    @property
    def accuracy(self) -> float:
        """Recall accuracy, the mean over tasks of the mean over a task's rows; NaN without rows."""
        tasks = dict.fromkeys(row.task for row in self.recall)
        accuracies = [[row.correct / row.queries for row in self.recall if row.task == task] for task in tasks]
        return statistics.mean(map(statistics.mean, accuracies)) if accuracies else math.nan


class Pace:
    """Predicts the duration of cells from finished ones: their fixed seconds, and their speed relative to `hardware.tflops`.

    It uses finished cells of the same family, size and batch if there are any, else of the same size and batch, the same family
    and size, the same size, or all; without any, the plan's predictions. With more cells on a device than in the measured runs a
    cell is assumed proportionally slower; with fewer it is not assumed faster, since the host may be the limit.
    """

    def __init__(self, study: StudyConfig, results: Iterable[CellResult]):
        self._study = study
        self._fixed: dict[tuple[object, ...], list[float]] = {}  # seconds besides the steps, by shared properties
        self._slowdowns: dict[tuple[object, ...], list[float]] = {}  # factors relative to `hardware.tflops`
        self._per_device: dict[tuple[object, ...], int] = {}  # largest planned number of cells per device
        for result in results:
            fixed = max(0.0, result.seconds - result.cell.own_tokens / result.tokens_per_second)
            for key in _pace_keys(result.cell):
                self._fixed.setdefault(key, []).append(fixed)
                self._slowdowns.setdefault(key, []).append(
                    study.hardware.tflops_of(result.cell.size) * result.cell.devices / result.tflops
                )
                self._per_device[key] = max(self._per_device.get(key, 1), result.cell.per_device)

    def __call__(self, cell: StudyCell, done: float = 0.0) -> float:
        """Predicted seconds of the cell if the share `done` of its training, 0 to 1, is in a checkpoint."""
        hardware = self._study.hardware
        training = (1 - done) * cell.own_flops / (1e12 * hardware.tflops_of(cell.size) * cell.devices)
        for key in _pace_keys(cell):
            if key in self._fixed:
                crowding = max(1.0, cell.per_device / self._per_device[key])
                return statistics.mean(self._fixed[key]) + training * crowding * statistics.median(self._slowdowns[key])
        return hardware.startup_seconds + training


def _pace_keys(cell: StudyCell) -> tuple[tuple[object, ...], ...]:
    """Keys of comparable cells, closest first. The batch counts since small ones are bound by kernel launches."""
    return (
        (cell.family, cell.size, cell.batch_tokens),
        (cell.size, cell.batch_tokens),
        (cell.family, cell.size),
        (cell.size,),
        (),
    )


def collect(
    plan: Plan, cell: StudyCell, folder: Path, identity: str, learning_rate: float, started: float
) -> CellResult:
    """Read the result of a cell from its run folder.

    Args:
        started: when the attempt that ends now began, before its imports (seconds since the epoch).

    Raises:
        UserError: the run is not finished, or the suites lack the metric that the study fits.
    """
    run = RunFiles(folder)
    checkpoint, record = run.checkpoints[-1]
    if record["step"] != cell.steps:
        raise UserError(f"{folder} ends at step {record['step']} of {cell.steps}: run the study again")
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    seconds = seconds_of_attempts(run.events)
    seconds += max(0.0, run.starts[-1]["time"] - started)  # negative if this attempt only evaluated
    suites: dict[str, str] = {}
    # Not every file there: results of suites that the study no longer asks for measure something else under the same names.
    for suite in plan.study.evaluation.suites:
        result = read_json(result_path(folder, checkpoint.name, load_suite(suite).name))
        suites[result["suite"]] = result["suite_sha256"]
        metrics |= result["metrics"]
        rows += result["rows"]
        seconds += result["ended"] - result["started"]
    loss_metric = plan.study.evaluation.loss
    if loss_metric not in metrics:
        measured = ", ".join(sorted(metrics)[:6])
        raise UserError(
            f"cell {cell.name}: evaluation.loss={loss_metric!r} is not measured by the suites: they give {measured} ..."
        )
    if not math.isfinite(metrics[loss_metric]):
        raise UserError(
            f"cell {cell.name}: {loss_metric} is {metrics[loss_metric]}: it diverged; a lower learning rate may help"
        )
    config = cell.architecture(plan.vocab_size)
    speeds = [event["tokens_per_second"] for event in run.steps]
    return CellResult(
        cell=cell,
        identity=identity,
        loss=metrics[loss_metric],
        metrics=metrics,
        suites=suites,
        recall=tuple(
            RecallRow(
                **{key: row[key] for key in RecallRow.model_fields if key != "state_bytes"},
                state_bytes=state_bytes(config, row["length"]),
            )
            for row in rows
        ),
        learning_rate=learning_rate,
        seconds=seconds,
        training_seconds=sum(cell.batch_tokens / speed for speed in speeds),
        tokens_per_second=statistics.median(speeds),
        starts=len(run.starts),
        hardware=run.environment.get("hardware", ""),
        host=run.environment.get("host", os.uname().nodename),
        git_commit=", ".join(run.commits) or None,
        versions=run.environment.get("versions", {}),
        trunk_content=run.lineage.parent.content if run.lineage and run.lineage.parent else None,
    )


def seconds_of_attempts(events: Sequence[dict[str, Any]]) -> float:
    """Seconds between the events of a run, without the time between one attempt and the next."""
    return sum(after["time"] - before["time"] for before, after in pairwise(events) if after["kind"] != "start")


def write_result(path: Path, result: CellResult) -> None:
    """Write a cell's record atomically."""
    write_json(path, result.model_dump(mode="json"))


def read_result(path: Path) -> CellResult | None:
    """Read the record at `path`; None if there is none.

    Raises:
        UserError: it is not a record of this version.
    """
    if not path.is_file():
        return None
    try:
        return CellResult.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg'].lower()}; delete it and run the study again") from error
