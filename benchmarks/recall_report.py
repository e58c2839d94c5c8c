"""What a table of recall has found, as a page, a JSON file and figures, from its result files alone.

    python benchmarks/recall_report.py benchmarks/tables/transfer.yaml

Writes `NAME.md`, `NAME.json` and `figures/NAME_*.png` into `docs/results` (or `--out`); the same results give the same bytes. What
people wrote in `NAME.notes.md` beside them is taken into the page. A table that was interrupted gives a report of what ran.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
from recall_report_figures import draw
from recall_report_json import as_json, origin
from recall_results import LENGTH_TASK, ArmReport, Report, Row, labels_of
from recall_tables import RESULTS, ROOT, read_runs, result_files

from echo_lm.data_prep.recall import task_of
from echo_lm.evals.recall_runs import RecallRun, runs_of
from echo_lm.evals.recall_table import load_table
from echo_lm.models.errors import UserError
from echo_lm.models.files import write_text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a YAML file of benchmarks/tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    try:
        print(write_report(arguments.table, arguments.results, arguments.out))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def write_report(table_path: Path, results: Path, out: Path) -> Path:
    """Write the page, the JSON file and the figures; returns the page.

    Raises:
        UserError: the table or a result file is wrong, or none of the table's runs is there.
    """
    table = load_table(table_path)
    report = Report(table, read_runs(result_files(results, table.name)))
    command = f"python benchmarks/recall_tables.py {shown(table_path)}"
    if not report.found:
        raise UserError(f"{results} holds no run of table {table.name}: run `{command}` first")
    figures = draw(report, out / "figures")
    write_text(out / f"{table.name}.json", as_json(report, command))
    notes = out / f"{table.name}.notes.md"
    prose = notes.read_text(encoding="utf-8").strip() if notes.is_file() else ""
    page = out / f"{table.name}.md"
    write_text(page, as_page(report, command, prose, figures))
    return page


def shown(path: Path) -> str:
    """A path as people type it: from the root of the checkout, where it lies inside."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def as_page(report: Report, command: str, prose: str, figures: Sequence[Path]) -> str:
    """The whole report in Markdown."""
    table, names = report.table, report.tasks
    made = origin(report)
    most = "at most " if table.each_cell and table.each_cell.enough and len(report.found) < report.planned else ""
    parts = [f"# Recall table: {table.name}", table.description, prose]
    parts.append(
        f"{len(report.found)} of {most}{report.planned} runs, on {', '.join(made['hardware'])}, "
        f"torch {', '.join(made['torch'])}, "
        f"{' and '.join(dict.fromkeys((made['dates'][0], made['dates'][-1])))}, commit {', '.join(made['commits'])}. "
        f"Every cell: [{table.name}.json]({table.name}.json). This page is made by `benchmarks/recall_report.py`; "
        f"prose belongs into `{table.name}.notes.md`. It all again:\n\n    {command}"
    )
    parts.append(_protocol(report))
    if gone := incomplete(report):
        parts.append("**Not complete.** " + " ".join(gone))
    parts += [_tasks(report), _intervals(report), _published_cells(report)]
    parts += ["\n".join(f"![{path.stem}](figures/{path.name})" for path in figures)]
    if LENGTH_TASK in names:
        parts.append(_lengths(report))
    if report.table.each_cell:
        parts.append(_cells(report))
    parts += [_labels(report), _rates(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(report: Report) -> str:
    """What a run learned, and how it was asked."""
    table, training, each = report.table, report.table.training, report.table.each_cell
    if each:
        what = "task, pairs and length" if each.curriculum is None else "task and pairs"
        learned = (
            f"A model a cell, trained on the cell's {what} alone: at most {each.tokens:,} tokens in steps of "
            f"{each.batch_tokens:,}, unless the arm says otherwise"
        )
        if each.curriculum is not None:
            gaps = ", ".join(f"{gap:,}" for gap in each.curriculum.gaps)
            learned += (
                f". It begins with shorter gaps than its own ({gaps}) and goes on to the next once "
                f"{100 * each.curriculum.lengthen_at:g}% of its last answers are right, or half of the tokens left are spent"
            )
        if training.stop_at is not None:
            learned += f"; it ends once {100 * training.stop_at:g}% of its last answers are right (50 steps, 2,000 answers or more)"
            if training.cooldown:
                learned += f" and {training.cooldown} steps at a rate that falls to zero are done"
    else:
        lengths, tasks = " or ".join(map(str, training.lengths)), " and ".join(training.tasks)
        learned = (
            f"Trained for {training.steps:,} steps of {training.batch_sequences} sequences of {lengths} tokens on {tasks}, "
            "unless the arm says otherwise"
        )
    rates = ""
    if len(table.learning_rates) > 1:
        rates = f" {'A cell' if each else 'An arm'}'s learning rate is the best on the very answers shown here."
    if each and each.enough is not None:
        rates += f" A cell gets another rate only where none before it answered {100 * each.enough:g}%."
    asked = (
        "Each seed is asked sequences of its own." if table.own_questions else "All seeds are asked the same sequences."
    )
    return f"{learned}.{rates} {asked}"


def incomplete(report: Report) -> list[str]:
    """Sentences about runs that are missing, diverged or of another version of the table."""
    arms: dict[str, list[str]] = {}  # what is said, of whom
    for arm in report.arms:
        if arm.missing and not arm.chosen:
            arms.setdefault("no run is there", []).append(arm.name)
        elif arm.missing:
            if report.table.each_cell:
                missing = _cells_at(report, arm.missing)
            else:
                missing = _at((run.training.learning_rate, run.seed) for run in arm.missing)
            arms.setdefault(f"missing {missing}", []).append(arm.name)
        if arm.diverged:
            diverged = _at((run["learning_rate"], run["seed"]) for run in arm.diverged)
            arms.setdefault(f"diverged {diverged}", []).append(arm.name)
    lines = [f"{', '.join(names)}: {said}." for said, names in arms.items()]
    if report.outdated:
        lines.append(f"{report.outdated} runs of an earlier version of the table are left out.")
    return lines


def _at(runs: Iterable[tuple[float, int]]) -> str:
    seeds: dict[float, set[int]] = {}
    for rate, seed in runs:
        seeds.setdefault(rate, set()).add(seed)
    return ", ".join(
        f"{'seed' if len(found) == 1 else 'seeds'} {' '.join(map(str, sorted(found)))} at {rate:g}"
        for rate, found in sorted(seeds.items())
    )


def _cells_at(report: Report, runs: Iterable[RecallRun]) -> str:
    """Cells whose models were not trained, by learning rate; of some the first may answer enough."""
    cells: dict[float, list[str]] = {}
    for run in runs:
        (cell,) = run.cells
        seed = f" seed {run.seed}" if len(report.table.seeds) > 1 else ""
        cells.setdefault(run.training.learning_rate, []).append(f"{cell.pairs} at {cell.gap:,}{seed}")
    return "; ".join(f"{', '.join(found)} (rate {rate:g})" for rate, found in sorted(cells.items()))


def _tasks(report: Report) -> str:
    """Arms by tasks."""
    head = ["arm", "parameters", "rate", "seeds", *report.tasks, "mean"]
    lines = []
    for arm in report.arms:
        if not arm.chosen:
            lines.append([arm.name, *["-"] * (len(head) - 1)])
            continue
        cells = [spread(report.task_mean(result, task) for result in arm.chosen) for task in report.tasks]
        cells.append(spread(report.mean(result) for result in arm.chosen))
        lines.append([arm.name, f"{arm.chosen[0]['parameters']:,}", _listed(arm.rates), str(len(arm.chosen)), *cells])
    for name, means in (report.table.published.means if report.table.published else {}).items():
        values = [f"{means[task]:.1f}" if task in means else "-" for task in report.tasks]
        asked = [means[task] for task in report.mean_of if task in means]
        mean = f"{fmean(asked):.1f}" if len(asked) == len(report.mean_of) else "-"
        lines.append([f"*{name}, published*", "-", "-", "-", *values, mean])
    chances = [percent(report.chance(task)) for task in report.tasks]
    lines.append(["chance", "", "", "", *chances, percent(fmean(map(report.chance, report.mean_of)))])
    ceilings = [task_of(task).ceiling for task in report.tasks]
    if min(ceilings) < 1:
        lines.append(["ceiling", "", "", "", *map(percent, ceilings), ""])
    cells = len(report.table.cells)
    text = "## Accuracy by task\n\nPercent: the mean over a task's cells, median of the seeds (lowest to highest); "
    text += f"the mean is that of {', '.join(report.mean_of)}. "
    if len(report.shared) < cells:
        ran = [
            {(row["label"], row["length"]) for result in arm.chosen for row in result["rows"]}
            for arm in report.arms
            if arm.chosen
        ]
        some = "" if all(set(report.shared) <= found for found in ran) else ", as far as they ran"
        text += f"Means are over the {len(report.shared)} of {cells} cells that every arm is asked{some}. "
    if report.table.published:
        text += f"Published: {report.table.published.source}. "
    return f"{text.strip()}\n\n{markdown(head, lines)}"


def _intervals(report: Report) -> str:
    """95% Wilson intervals of each task."""
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


def _published_cells(report: Report) -> str:
    """Published numbers of single cells beside ours on the plain version of the task."""
    published = report.table.published
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


def _lengths(report: Report) -> str:
    """A table by length for every label of the task."""
    parts = ["## NIAH by length\n\nPercent (95% Wilson interval), seeds pooled."]
    for label in labels_of(report, LENGTH_TASK):
        curves = report.by_length(label)
        lengths = sorted({cell.length for cell in report.table.cells if cell.label == label})
        queries = dict.fromkeys(lengths, 0)
        lines = []
        for name, rows in curves.items():
            at = {row["length"]: row for row in rows}
            lines.append([name, *(with_interval(at.get(length)) for length in lengths)])
            queries |= {length: max(queries[length], row["queries"]) for length, row in at.items()}
        lines.append(["queries, at most", *(f"{queries[length]:,}" for length in lengths)])
        parts.append(f"{label}:\n\n" + markdown(["arm", *(f"{length:,}" for length in lengths)], lines))
    short = [f"{name} beyond {arm.longest:,}" for name, arm in report.table.arms.items() if arm.longest]
    if short:
        parts.append(f"Not asked: {', '.join(short)} tokens.")
    return "\n\n".join(parts)


def _cells(report: Report) -> str:
    """Cell by cell, pairs by gaps: accuracy, and what the run of the cell took."""
    budget = report.table.each_cell.tokens
    parts = [
        f"## Cell by cell\n\nA model a cell. Percent, and the millions of tokens that it was trained on, at most {budget / 1e6:g} "
        "unless the arm has a budget of its own; and the learning rate, where an arm's cells have several. Rows: pairs. Columns: "
        "tokens of noise between pairs and questions."
    ]
    gaps = sorted({cell.gap for cell in report.table.cells})
    for arm in report.arms:
        found = {(row["pairs"], row["length"]): row for result in arm.chosen for row in result["rows"]}
        lines = []
        for pairs in dict.fromkeys(cell.pairs for cell in report.table.cells):
            at = {cell.gap: found.get((pairs, cell.length)) for cell in report.table.cells if cell.pairs == pairs}
            lines.append([str(pairs), *(_learned(at.get(gap), len(arm.rates) > 1) for gap in gaps)])
        if found:
            parts.append(f"{arm.name}:\n\n" + markdown(["pairs", *(f"{gap:,}" for gap in gaps)], lines))
    return "\n\n".join(parts)


def _learned(row: Row | None, names_rate: bool) -> str:
    if row is None:
        return "-"
    rate = f", {row['learning_rate']:g}" if names_rate else ""
    return f"{100 * row['correct'] / row['queries']:.2f} ({row['trained_tokens'] / 1e6:.1f}M{rate})"


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _labels(report: Report) -> str:
    """Every kind of question, all lengths together."""
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


def _rates(report: Report) -> str:
    """Every learning rate that was tried."""
    rates = sorted({run.training.learning_rate for run in runs_of(report.table)})
    said = "Mean in percent (seeds that ran); bold is what the tables above show."
    if report.table.each_cell:
        said = "Cells that were trained at the rate (and those of them that it answered best)."
    lines = [[arm.name, *(_tried(arm, rate) for rate in rates)] for arm in report.arms]
    return f"## Learning rates tried\n\n{said}\n\n" + markdown(["arm", *(f"{rate:g}" for rate in rates)], lines)


def _tried(arm: ArmReport, rate: float) -> str:
    """What came of one rate."""
    if rate in arm.cells:
        trained, best = arm.cells[rate]
        return f"{trained} ({best})"
    if rate not in arm.scores:
        return "-"
    text = f"{percent(fmean(arm.scores[rate].values()))} ({len(arm.scores[rate])})"
    return f"**{text}**" if rate in arm.rates else text


def percent(share: float) -> str:
    """0.971 as 97.1."""
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
    """The 95% interval of a pooled row."""
    return f"{percent(row['low'])} to {percent(row['high'])}" if row else "-"


def with_interval(row: Row | None) -> str:
    """Accuracy and interval of a pooled row."""
    return f"{percent(row['accuracy'])} ({interval(row)})" if row else "-"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    main()
