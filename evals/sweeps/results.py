"""Results of a recall sweep: each arm, or each of its cells, at its best learning rate, with sums over its runs."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ...data_prep.recall import task_of
from ..measurements.bounded_cache import CacheBudget
from ..scores import accuracy
from .config import RecallSweep
from .runs import RecallRun, is_settled, runs_of

LENGTH_TASK = "niah"  # the task whose accuracy is shown length by length
Result = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class ArmReport:
    """The results of one arm.

    Attributes:
        scores: for each learning rate that was tried, the score of each seed that ran (shares of 1).
        cells: instead, where each cell has a model of its own: how many were trained at a rate, and how many of them answer best.
        rates: those of `chosen`, ascending; none if nothing ran.
        chosen: what is shown, by seed: the runs at the rate with the best mean, or each cell at the rate that answers it best.
        missing, diverged: runs, of any rate; not those that `each_cell.enough` spares.
    """

    name: str
    scores: dict[float, dict[int, float]]
    cells: dict[float, tuple[int, int]]
    rates: list[float]
    chosen: list[Result]
    missing: list[RecallRun]
    diverged: list[Result]


class Report:
    """A sweep and its results.

    Attributes:
        tasks: in the sweep's order; mean_of: those whose mean stands for an arm.
        configs: the model of each arm.
        shared: label and length of the cells that every arm is evaluated on: means are taken over these.
    """

    def __init__(self, sweep: RecallSweep, results: Iterable[Result]):
        self.sweep = sweep
        runs = runs_of(sweep)
        planned = {run.id for run in runs}
        self.configs = {run.arm: run.config for run in runs}
        results = list(results)
        self.found = {result["id"]: result for result in results if result["id"] in planned}
        self.outdated = len(results) - len(self.found)
        self.tasks = list(dict.fromkeys(cell.name for cell in sweep.cells))
        self.mean_of = list(sweep.mean_of) or self.tasks
        self.shared = {
            (cell.label, cell.length) for cell in sweep.cells if all(sweep.evaluates(arm, cell) for arm in sweep.arms)
        }
        self.choices = {task: task_of(task).choices(sweep.ids) for task in self.tasks}
        self.arms = [self._arm(name, [run for run in runs if run.arm == name]) for name in sweep.arms]
        self.planned = len(self.found) + sum(len(arm.missing) for arm in self.arms)

    def _arm(self, name: str, runs: list[RecallRun]) -> ArmReport:
        here = [self.found[run.id] for run in runs if run.id in self.found]
        scores: dict[float, dict[int, float]] = {}
        cells: dict[float, tuple[int, int]] = {}
        if self.sweep.each_cell:
            best = best_of_cells(here)
            for rate in sorted({result["learning_rate"] for result in here}):
                evaluated, chosen_cells = (
                    sum(result["learning_rate"] == rate for result in some) for some in (here, best)
                )
                cells[rate] = evaluated, chosen_cells
            rates, chosen = sorted({result["learning_rate"] for result in best}), joined(best)
        else:
            for result in sorted(here, key=lambda result: (result["learning_rate"], result["seed"])):
                scores.setdefault(result["learning_rate"], {})[result["seed"]] = self.mean(result)
            # Without a cell that all arms are evaluated on there is no mean yet, and no best learning rate.
            means = {rate: np.nan_to_num(fmean(found.values()), nan=-1.0) for rate, found in scores.items()}
            rates = [max(means, key=lambda rate: means[rate])] if means else []
            chosen = [result for result in here if result["learning_rate"] in rates]
        return ArmReport(
            name,
            scores,
            cells,
            rates,
            sorted(chosen, key=lambda result: result["seed"]),
            [run for run in runs if run.id not in self.found and not is_settled(self.sweep, run, runs, self.found)],
            [result for result in here if result["diverged"]],
        )

    def task_mean(self, result: Result, task: str) -> float:
        """Mean accuracy over the cells of a task that every arm is evaluated on; NaN without any."""
        rows = [row for row in result["rows"] if row["task"] == task and (row["label"], row["length"]) in self.shared]
        return fmean(row["correct"] / row["queries"] for row in rows) if rows else np.nan

    def mean(self, result: Result) -> float:
        """The headline score of a run: the mean over the tasks of `mean_of`; NaN where one has no cell."""
        return fmean(self.task_mean(result, task) for task in self.mean_of)

    def chance(self, task: str) -> float:
        """The accuracy of guessing."""
        return 1 / len(self.choices[task])

    def pooled(self, arm: ArmReport, keep: Callable[[Row], bool]) -> Row | None:
        """Accuracy of all answers of the arm's chosen runs on the kept cells, pooled: `evals.scores.accuracy`."""
        rows = [row for result in arm.chosen for row in result["rows"] if keep(row)]
        if not rows:
            return None
        correct, queries = (sum(row[key] for row in rows) for key in ("correct", "queries"))
        return accuracy(correct, queries, chance=self.chance(rows[0]["task"]))

    def bounded(self, arm: ArmReport, label: str, lengths: Collection[int]) -> dict[tuple[str, int], Row]:
        """Accuracy of the arm's chosen runs under each bounded KV cache, by its name and bytes, pooled over seeds and lengths."""
        counts: dict[tuple[str, int], Counter] = {}
        for row in bounded_rows(arm):
            if row["label"] == label and row["length"] in lengths:
                count = counts.setdefault(budget_of(row), Counter())
                count.update(correct=row["correct"], queries=row["queries"])
        task = next(cell.name for cell in self.sweep.cells if cell.label == label)
        return {
            budget: accuracy(count["correct"], count["queries"], chance=self.chance(task))
            for budget, count in counts.items()
        }

    def by_length(self, label: str) -> dict[str, list[Row]]:
        """A row per length for each arm with results, pooled over seeds."""
        lengths = sorted({cell.length for cell in self.sweep.cells if cell.label == label})
        curves: dict[str, list[Row]] = {}
        for arm in self.arms:
            for length in lengths:
                row = self.pooled(arm, lambda row, at=length: row["label"] == label and row["length"] == at)
                if row:
                    curves.setdefault(arm.name, []).append(row | {"label": label, "length": length})
        return curves


def bounded_rows(arm: ArmReport) -> list[Row]:
    """The rows of the arm's chosen runs under bounded KV caches."""
    return [row for result in arm.chosen for row in result.get("bounded", [])]


def budget_of(row: Row) -> tuple[str, int]:
    """Name and bytes of the bounded KV cache of a row."""
    cache = CacheBudget(**row["cache"])
    return cache.name, cache.bytes


def best_of_cells(results: Iterable[Result]) -> list[Result]:
    """The best run of each cell and seed, among runs of one cell each: the one with most right answers, the first of equal ones."""
    best: dict[tuple[str, int, int], Result] = {}
    for result in results:
        (row,) = result["rows"]
        place = (row["label"], row["length"], result["seed"])
        if place not in best or row["correct"] > best[place]["rows"][0]["correct"]:
            best[place] = result
    return list(best.values())


def joined(results: Iterable[Result]) -> list[Result]:
    """Join runs of one cell each into one run per seed; a row also has the learning rate of its run and its `trained_tokens`."""
    whole: dict[int, Result] = {}
    for result in results:
        own = {"trained_tokens": result["tokens"], "learning_rate": result["learning_rate"]}
        one = whole.setdefault(result["seed"], result | {"rows": []})
        one["rows"] += [row | own for row in result["rows"]]
    return list(whole.values())


def labels_of(report: Report, task: str) -> list[str]:
    """The labels of a task's cells, in the sweep's order."""
    return list(dict.fromkeys(cell.label for cell in report.sweep.cells if cell.name == task))
