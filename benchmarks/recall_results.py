"""What a table of recall has found: each arm at its best learning rate, and sums over its runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from echo_lm.data_prep.recall import task_of
from echo_lm.evals.recall_runs import RecallRun, runs_of
from echo_lm.evals.recall_table import RecallTable
from echo_lm.evals.scores import accuracy

LENGTH_TASK = "niah"  # the task whose accuracy is shown length by length
Result = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class ArmReport:
    """What ran of one arm.

    Attributes:
        scores: for each learning rate that was tried, the score of each seed that ran (shares of 1).
        rate: the one with the best mean; None if nothing ran.
        chosen: its runs, by seed.
        missing, diverged: runs, of any rate.
    """

    name: str
    scores: dict[float, dict[int, float]]
    rate: float | None
    chosen: list[Result]
    missing: list[RecallRun]
    diverged: list[Result]


class Report:
    """A table and its results.

    Attributes:
        tasks: in the table's order; mean_of: those whose mean stands for an arm.
        shared: label and length of the cells that every arm is asked: means are taken over these.
    """

    def __init__(self, table: RecallTable, results: Iterable[Result]):
        self.table = table
        runs = runs_of(table)
        self.planned = len(runs)
        planned = {run.id for run in runs}
        results = list(results)
        self.found = {result["id"]: result for result in results if result["id"] in planned}
        self.outdated = len(results) - len(self.found)
        self.tasks = list(dict.fromkeys(cell.name for cell in table.cells))
        self.mean_of = list(table.mean_of) or self.tasks
        self.shared = {
            (cell.label, cell.length) for cell in table.cells if all(table.asks(arm, cell) for arm in table.arms)
        }
        self.choices = {task: task_of(task).choices(table.ids) for task in self.tasks}
        self.arms = [self._arm(name, [run for run in runs if run.arm == name]) for name in table.arms]

    def _arm(self, name: str, runs: list[RecallRun]) -> ArmReport:
        here = [self.found[run.id] for run in runs if run.id in self.found]
        if self.table.each_cell:
            here = joined(here)
        scores: dict[float, dict[int, float]] = {}
        for result in sorted(here, key=lambda result: (result["learning_rate"], result["seed"])):
            scores.setdefault(result["learning_rate"], {})[result["seed"]] = self.mean(result)
        # Without a cell that all arms are asked there is no mean yet, and nothing that chooses.
        rate = max(scores, key=lambda rate: np.nan_to_num(fmean(scores[rate].values()), nan=-1.0), default=None)
        return ArmReport(
            name,
            scores,
            rate,
            sorted((result for result in here if result["learning_rate"] == rate), key=lambda result: result["seed"]),
            [run for run in runs if run.id not in self.found],
            [result for result in here if result["diverged"]],
        )

    def task_mean(self, result: Result, task: str) -> float:
        """Mean accuracy over the cells of a task that every arm is asked; NaN without any."""
        rows = [row for row in result["rows"] if row["task"] == task and (row["label"], row["length"]) in self.shared]
        return fmean(row["correct"] / row["queries"] for row in rows) if rows else np.nan

    def mean(self, result: Result) -> float:
        """The one number of a run: the mean over the tasks of `mean_of`; NaN where one has no cell."""
        return fmean(self.task_mean(result, task) for task in self.mean_of)

    def chance(self, task: str) -> float:
        """What guessing gives."""
        return 1 / len(self.choices[task])

    def pooled(self, arm: ArmReport, keep: Callable[[Row], bool]) -> Row | None:
        """The kept cells of the arm's chosen runs as one: `evals.scores.accuracy` of all their answers."""
        rows = [row for result in arm.chosen for row in result["rows"] if keep(row)]
        if not rows:
            return None
        correct, queries = (sum(row[key] for row in rows) for key in ("correct", "queries"))
        return accuracy(correct, queries, chance=self.chance(rows[0]["task"]))

    def by_length(self, label: str) -> dict[str, list[Row]]:
        """For each arm that ran a row for each length, pooled over seeds."""
        lengths = sorted({cell.length for cell in self.table.cells if cell.label == label})
        curves: dict[str, list[Row]] = {}
        for arm in self.arms:
            for length in lengths:
                row = self.pooled(arm, lambda row, at=length: row["label"] == label and row["length"] == at)
                if row:
                    curves.setdefault(arm.name, []).append(row | {"label": label, "length": length})
        return curves


def joined(results: Iterable[Result]) -> list[Result]:
    """Runs of one cell each as one run a rate and seed; a row also says in `trained_tokens` what its run took."""
    whole: dict[tuple[float, int], Result] = {}
    for result in results:
        rows = [row | {"trained_tokens": result["tokens"]} for row in result["rows"]]
        one = whole.setdefault((result["learning_rate"], result["seed"]), result | {"rows": [], "diverged": False})
        one["rows"] += rows
        one["diverged"] |= result["diverged"]
    return list(whole.values())


def labels_of(report: Report, task: str) -> list[str]:
    """The labels of a task's cells, in the table's order."""
    return list(dict.fromkeys(cell.label for cell in report.table.cells if cell.name == task))
