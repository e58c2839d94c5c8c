"""The numbers of a report on a recall sweep, as JSON."""

import json
from typing import Any

import numpy as np

from ...data_prep.recall import task_of
from ..scores import accuracy
from .results import ArmReport, Report, Result, Row
from .runs import RecallRun


def as_json(report: Report, command: str) -> str:
    """The numbers of the chosen rates, a row on a line, after what is needed to read them."""
    sweep = report.sweep
    head = {
        "table": sweep.name,
        "command": command,
        "runs": {"planned": report.planned, "found": len(report.found)},
        **origin(report),
        "training": {name: value for name, value in sweep.training if name != "learning_rate"},
        "mean_of": report.mean_of,
        "own_queries": sweep.own_queries,
        "chance": {task: report.chance(task) for task in report.tasks},
        "ceiling": {task: task_of(task).ceiling for task in report.tasks},
        "published": sweep.published and sweep.published.model_dump(mode="json"),
        "arms": {arm.name: _arm_json(report, arm) for arm in report.arms},
    }
    rows = [
        json.dumps(row_json(report, arm, result, row), allow_nan=False)
        for arm in report.arms
        for result in arm.chosen
        for row in result["rows"]
    ]
    bounded = [
        json.dumps(row_json(report, arm, result, row) | {"cache": row["cache"]}, allow_nan=False)
        for arm in report.arms
        for result in arm.chosen
        for row in result.get("bounded", ())
    ]
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    for name, lines in {"rows": rows, "bounded": bounded}.items():
        if lines or name == "rows":
            text += f',\n  "{name}": [\n    ' + ",\n    ".join(lines) + "\n  ]"
    return text + "\n}\n"


def _arm_json(report: Report, arm: ArmReport) -> dict[str, Any]:
    if report.sweep.each_cell:
        cells = {f"{rate:g}": {"trained": trained, "best": best} for rate, (trained, best) in arm.cells.items()}
        rates = {"learning_rates": arm.rates, "cells_by_rate": cells}
    else:
        means = {
            f"{rate:g}": {str(seed): None if np.isnan(share) else share for seed, share in scores.items()}
            for rate, scores in arm.scores.items()
        }
        rates = {"learning_rate": next(iter(arm.rates), None), "mean_by_rate_and_seed": means}
    return {
        "preset": report.sweep.arms[arm.name].preset,
        "model": report.sweep.arms[arm.name].model,
        "training": report.sweep.arms[arm.name].training,
        "parameters": arm.chosen[0]["parameters"] if arm.chosen else None,
        **rates,
        "missing": [_missing_json(report, run) for run in arm.missing],
        "diverged": [{"learning_rate": run["learning_rate"], "seed": run["seed"]} for run in arm.diverged],
    }


def _missing_json(report: Report, run: RecallRun) -> dict[str, Any]:
    place = {"learning_rate": run.training.learning_rate, "seed": run.seed}
    if report.sweep.each_cell:
        (cell,) = run.cells
        place |= {"pairs": cell.pairs, "length": cell.length}
    return place


def row_json(report: Report, arm: ArmReport, result: Result, row: Row) -> Row:
    """The result of one run on one cell, with its interval."""
    score = accuracy(row["correct"], row["queries"], chance=report.chance(row["task"]))
    return {
        "arm": arm.name,
        **{key: row[key] for key in ("task", "label", "pairs", "length", "options")},
        **{key: row[key] for key in ("trained_tokens", "learning_rate") if key in row},
        "seed": result["seed"],
        **{key: score[key] for key in ("queries", "correct", "low", "high")},
    }


def origin(report: Report) -> dict[str, list[str]]:
    """Hardware, dates and code versions of the runs."""
    keys = {"hardware": "hardware", "torch": "torch", "dates": "date", "commits": "commit"}
    return {name: sorted({result[key] for result in report.found.values()}) for name, key in keys.items()}
