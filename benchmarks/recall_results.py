"""What a table of recall has found: each arm, or each of its cells, at its best learning rate, and sums over its runs."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from echo_lm.data_prep.recall import task_of
from echo_lm.evals.recall_runs import RecallRun, is_settled, runs_of
from echo_lm.evals.recall_table import RecallTable
from echo_lm.evals.scores import accuracy

LENGTH_TASK = "niah"  # the task whose accuracy is shown length by length
Result = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class ArmReport:
    """What ran of one arm.

    Attributes:
        scores: for each learning rate that was tried, the score of each seed that ran (shares of 1); where each cell has a model of
            its own, over the cells that ran at that rate.
        rates: the one with the best mean, or of all cells the one that answered it best; none if nothing ran.
        chosen: its runs, by seed.
        missing, diverged: runs, of any rate; not those that `each_cell.enough` spares.
    """

    name: str
    scores: dict[float, dict[int, float]]
    rates: list[float]
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
        self.planned = len(self.found) + sum(len(arm.missing) for arm in self.arms)

    def _arm(self, name: str, runs: list[RecallRun]) -> ArmReport:
        here = [self.found[run.id] for run in runs if run.id in self.found]
        missing = [run for run in runs if run.id not in self.found and not is_settled(self.table, run, here)]
        chosen = []
        if self.table.each_cell:
            chosen = joined(best_of_cells(here), lambda result: result["seed"])
            here = joined(here, lambda result: (result["learning_rate"], result["seed"]))
        scores: dict[float, dict[int, float]] = {}
        for result in sorted(here, key=lambda result: (result["learning_rate"], result["seed"])):
            scores.setdefault(result["learning_rate"], {})[result["seed"]] = self.mean(result)
        # Without a cell that all arms are asked there is no mean yet, and nothing that chooses.
        if not self.table.each_cell:
            best = max(scores, key=lambda rate: np.nan_to_num(fmean(scores[rate].values()), nan=-1.0), default=None)
            chosen = [result for result in here if result["learning_rate"] == best]
        return ArmReport(
            name,
            scores,
            sorted({row.get("learning_rate", result["learning_rate"]) for result in chosen for row in result["rows"]}),
            sorted(chosen, key=lambda result: result["seed"]),
            missing,
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


def best_of_cells(results: Iterable[Result]) -> list[Result]:
    """Of runs of one cell each, for each cell and seed the one with most right answers; of equal ones the first."""
    best: dict[tuple[str, int, int], Result] = {}
    for result in results:
        (row,) = result["rows"]
        place = (row["label"], row["length"], result["seed"])
        if place not in best or row["correct"] > best[place]["rows"][0]["correct"]:
            best[place] = result
    return list(best.values())


def joined(results: Iterable[Result], of: Callable[[Result], Hashable]) -> list[Result]:
    """Runs of one cell each, alike in `of`, as one; a row also says the rate of its run, and in `trained_tokens` what that took."""
    whole: dict[Hashable, Result] = {}
    for result in results:
        rows = [
            row | {"trained_tokens": result["tokens"], "learning_rate": result["learning_rate"]}
            for row in result["rows"]
        ]
        one = whole.setdefault(of(result), result | {"rows": [], "diverged": False})
        one["rows"] += rows
        one["diverged"] |= result["diverged"]
    return list(whole.values())


def labels_of(report: Report, task: str) -> list[str]:
    """The labels of a task's cells, in the table's order."""
    return list(dict.fromkeys(cell.label for cell in report.table.cells if cell.name == task))
