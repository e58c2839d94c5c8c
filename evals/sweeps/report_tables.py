"""The Markdown tables of a report on a recall sweep."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median

import numpy as np

from ...data_prep.recall import task_of
from .results import LENGTH_TASK, ArmReport, Report, Row, labels_of
from .runs import runs_of


def accuracy_by_task(report: Report) -> str:
    """Table of accuracies, arms by tasks."""
    head = ["arm", "parameters", "rate", "seeds", *report.tasks, "mean"]
    lines = []
    for arm in report.arms:
        if not arm.chosen:
            lines.append([arm.name, *["-"] * (len(head) - 1)])
            continue
        cells = [spread(report.task_mean(result, task) for result in arm.chosen) for task in report.tasks]
        cells.append(spread(report.mean(result) for result in arm.chosen))
        lines.append([arm.name, f"{arm.chosen[0]['parameters']:,}", _listed(arm.rates), str(len(arm.chosen)), *cells])
    for name, means in (report.sweep.published.means if report.sweep.published else {}).items():
        values = [f"{means[task]:.1f}" if task in means else "-" for task in report.tasks]
        in_mean = [means[task] for task in report.mean_of if task in means]
        mean = f"{fmean(in_mean):.1f}" if len(in_mean) == len(report.mean_of) else "-"
        lines.append([f"*{name}, published*", "-", "-", "-", *values, mean])
    chances = [percent(report.chance(task)) for task in report.tasks]
    lines.append(["chance", "", "", "", *chances, percent(fmean(map(report.chance, report.mean_of)))])
    ceilings = [task_of(task).ceiling for task in report.tasks]
    if min(ceilings) < 1:
        lines.append(["ceiling", "", "", "", *map(percent, ceilings), ""])
    cells = len(report.sweep.cells)
    text = "## Accuracy by task\n\nPercent: the mean over a task's cells, median of the seeds (lowest to highest); "
    text += f"the mean is that of {', '.join(report.mean_of)}. "
    if len(report.shared) < cells:
        ran = [
            {(row["label"], row["length"]) for result in arm.chosen for row in result["rows"]}
            for arm in report.arms
            if arm.chosen
        ]
        some = "" if all(set(report.shared) <= found for found in ran) else ", as far as they ran"
        text += f"Means are over the {len(report.shared)} of {cells} cells that every arm is evaluated on{some}. "
    if report.sweep.published:
        text += f"Published: {report.sweep.published.source}. "
    return f"{text.strip()}\n\n{markdown(head, lines)}"


def intervals_by_task(report: Report) -> str:
    """Table of the 95% Wilson intervals of each task."""
    lines, queries = [], dict.fromkeys(report.tasks, 0)
    for arm in report.arms:
        cells = []
        for task in report.tasks:
            shared = report.pooled(
                arm, lambda row, task=task: row["task"] == task and (row["label"], row["length"]) in report.shared
            )
            cells.append(interval(shared))
            queries[task] = max(queries[task], shared["queries"] if shared else 0)
        lines.append([arm.name, *cells])
    lines.append(["queries, at most", *(f"{queries[task]:,}" for task in report.tasks)])
    return "95% Wilson intervals, all answers of a task and of all seeds pooled:\n\n" + markdown(
        ["arm", *report.tasks], lines
    )


def published_cells(report: Report) -> str:
    """Table of published accuracies of single cells beside ours on the plain version of the task."""
    published = report.sweep.published
    if not published or not published.cells:
        return ""
    head = ["arm", *(f"{cell.task}, {cell.pairs} at {cell.length:,}" for cell in published.cells)]
    lines = []
    for arm in report.arms:
        found = []
        for cell in published.cells:
            row = report.pooled(
                arm,
                lambda row, cell=cell: (
                    (row["task"], row["pairs"], row["length"]) == (cell.task, cell.pairs, cell.length)
                    and row["options"] in ({}, {"haystack": "seen"})
                ),
            )
            found.append(with_interval(row))
        lines.append([arm.name, *found])
    for name in dict.fromkeys(name for cell in published.cells for name in cell.percent):
        values = [f"{cell.percent[name]:.1f}" if name in cell.percent else "-" for cell in published.cells]
        lines.append([f"*{name}, published*", *values])
    return (
        f"Single cells beside those of {published.source}; ours with 95% Wilson intervals, seeds pooled:\n\n"
        + markdown(head, lines)
    )


def accuracy_by_length(report: Report) -> list[str]:
    """A table by length for every label of the task, the first with the heading."""
    parts = ["## NIAH by length\n\nPercent (95% Wilson interval), seeds pooled."]
    for label in labels_of(report, LENGTH_TASK):
        curves = report.by_length(label)
        lengths = sorted({cell.length for cell in report.sweep.cells if cell.label == label})
        queries = dict.fromkeys(lengths, 0)
        lines = []
        for name, rows in curves.items():
            at = {row["length"]: row for row in rows}
            lines.append([name, *(with_interval(at.get(length)) for length in lengths)])
            queries |= {length: max(queries[length], row["queries"]) for length, row in at.items()}
        lines.append(["queries, at most", *(f"{queries[length]:,}" for length in lengths)])
        parts.append(f"{label}:\n\n" + markdown(["arm", *(f"{length:,}" for length in lengths)], lines))
    short = [f"{name} beyond {arm.longest:,}" for name, arm in report.sweep.arms.items() if arm.longest]
    if short:
        parts[0] += f" Not evaluated: {', '.join(short)} tokens."
    return _with_heading(parts)


def _with_heading(parts: list[str]) -> list[str]:
    """The tables, the first of them below the heading in `parts[0]`."""
    return ["\n\n".join(parts[:2]), *parts[2:]]


def accuracy_by_cell(report: Report) -> list[str]:
    """For each arm a table of its cells, pairs by gaps: accuracy, and the tokens that the run of the cell took."""
    assert report.sweep.each_cell is not None
    budget = report.sweep.each_cell.tokens
    parts = [
        f"## Cell by cell\n\nA model a cell. Percent, and the millions of tokens that it was trained on, at most {budget / 1e6:g} "
        "unless the arm has a budget of its own; and the learning rate, where an arm's cells have several. Rows: pairs. Columns: "
        "tokens of noise between pairs and questions."
    ]
    gaps = sorted({cell.gap for cell in report.sweep.cells})
    for arm in report.arms:
        found = {(row["pairs"], row["length"]): row for result in arm.chosen for row in result["rows"]}
        lines = []
        for pairs in dict.fromkeys(cell.pairs for cell in report.sweep.cells):
            at = {cell.gap: found.get((pairs, cell.length)) for cell in report.sweep.cells if cell.pairs == pairs}
            lines.append([str(pairs), *(_learned(at.get(gap), len(arm.rates) > 1) for gap in gaps)])
        if found:
            parts.append(f"{arm.name}:\n\n" + markdown(["pairs", *(f"{gap:,}" for gap in gaps)], lines))
    return _with_heading(parts)


def _learned(row: Row | None, names_rate: bool) -> str:
    if row is None:
        return "-"
    rate = f", {row['learning_rate']:g}" if names_rate else ""
    return f"{100 * row['correct'] / row['queries']:.2f} ({row['trained_tokens'] / 1e6:.1f}M{rate})"


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def accuracy_by_label(report: Report) -> str:
    """Table of accuracies by label, all lengths together."""
    arms = [arm for arm in report.arms if arm.chosen]
    lines = []
    for task in report.tasks:
        for label in labels_of(report, task):
            pools = [
                report.pooled(
                    arm, lambda row, at=label: row["label"] == at and (row["label"], row["length"]) in report.shared
                )
                for arm in arms
            ]
            lengths = sorted(length for at, length in report.shared if at == label)
            reach = f"{lengths[0]:,} to {lengths[-1]:,}" if lengths else "-"
            lines.append([label, reach, *(percent(pool["accuracy"]) if pool else "-" for pool in pools)])
    head = ["question", "lengths", *(arm.name for arm in arms)]
    return "## By kind of question\n\nPercent, all lengths and seeds pooled.\n\n" + markdown(head, lines)


def learning_rates_tried(report: Report) -> str:
    """Table of every learning rate that was tried, with its scores."""
    rates = sorted({run.training.learning_rate for run in runs_of(report.sweep)})
    said = "Mean in percent (seeds that ran); bold is what the tables above show."
    if report.sweep.each_cell:
        said = "Cells that were trained at the rate (and those of them that it answered best)."
    lines = [[arm.name, *(_tried(arm, rate) for rate in rates)] for arm in report.arms]
    return f"## Learning rates tried\n\n{said}\n\n" + markdown(["arm", *(f"{rate:g}" for rate in rates)], lines)


def _tried(arm: ArmReport, rate: float) -> str:
    """The scores of one learning rate as text."""
    if rate in arm.cells:
        trained, best = arm.cells[rate]
        return f"{trained} ({best})"
    if rate not in arm.scores:
        return "-"
    text = f"{percent(fmean(arm.scores[rate].values()))} ({len(arm.scores[rate])})"
    return f"**{text}**" if rate in arm.rates else text


def percent(share: float) -> str:
    """A share as a percentage without its sign: 0.971 as 97.1."""
    return f"{100 * share:.1f}"


def spread(shares: Iterable[float]) -> str:
    """Median and range: `97.1 (96.5 to 98.0)`; of one value the value."""
    shares = list(shares)
    if np.isnan(shares).any():
        return "-"
    if len(shares) == 1:
        return percent(shares[0])
    return f"{percent(median(shares))} ({percent(min(shares))} to {percent(max(shares))})"


def interval(row: Row | None) -> str:
    """The 95% interval of a pooled row as text."""
    return f"{percent(row['low'])} to {percent(row['high'])}" if row else "-"


def with_interval(row: Row | None) -> str:
    """Accuracy and interval of a pooled row as text."""
    return f"{percent(row['accuracy'])} ({interval(row)})" if row else "-"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with the column names `head` and a line for each of `lines`."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
