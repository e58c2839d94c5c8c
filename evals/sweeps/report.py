"""The report of a recall sweep: a page, a JSON file and figures, made from its result files alone (`echo-lm sweep report`).

The same results give the same bytes. What people wrote in `NAME.notes.md` beside the page is taken into it. A sweep that was
interrupted gives a report of what ran.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.files import write_text
from .config import load_sweep, sweep_names
from .report_figures import draw
from .report_json import as_json, origin
from .report_state import accuracy_by_budget, accuracy_by_state
from .report_tables import (
    accuracy_by_cell,
    accuracy_by_label,
    accuracy_by_length,
    accuracy_by_task,
    intervals_by_task,
    learning_rates_tried,
    published_cells,
)
from .result_files import Results, SweepFolder
from .results import LENGTH_TASK, Report
from .runs import RecallRun

LINES_OF_REMARK = 2  # an empty line, and the one with the count of what was left out


def write_report(sweep_path: Path, results: Path, out: Path, lines: int | None = None) -> Path:
    """Write the page and its figures; returns the page.

    In the sweep's own folder a JSON file with the numbers of the page stands beside it. A page anywhere else is one of many about
    results that are kept once, and links to their file.

    Args:
        lines: of the page at most; tables that do not fit are left out.

    Raises:
        UserError: the sweep or a result file is wrong, or none of the sweep's runs is there.
    """
    report = load_report(sweep_path, results)
    name = report.sweep.name
    numbers = out / f"{name}.json"
    if out.resolve() == (results / name).resolve():
        write_text(numbers, as_json(report, command_of(sweep_path)))
    else:
        numbers = numbers_of(results, name)
    page = out / f"{name}.md"
    figures = draw(report, out / "figures")
    link = Path(os.path.relpath(numbers, out)).as_posix()
    write_text(page, as_page(report, command_of(sweep_path), notes_beside(page), figures, link, lines))
    return page


def numbers_of(results: Path, name: str) -> Path:
    """The path of a sweep's stored results: its joined file, its folder, or the folder of parts that earlier versions wrote."""
    places = (results / f"{name}.json", results / name)
    return next((place for place in places if place.exists()), results)


def load_report(sweep_path: Path, results: Path) -> Report:
    """The report of a sweep whose results lie in `results`; errors as `write_report`."""
    sweep = load_sweep(sweep_path)
    report = Report(sweep, Results(SweepFolder(results, sweep.name)).found.values())
    if not report.found:
        raise UserError(f"{results} holds no run of sweep {sweep.name}: run `{command_of(sweep_path)}` first")
    return report


def notes_beside(page: Path) -> str:
    """The hand-written notes for the page, from `NAME.notes.md`."""
    notes = page.with_suffix(".notes.md")
    return notes.read_text(encoding="utf-8").strip() if notes.is_file() else ""


def command_of(sweep: Path) -> str:
    """The command that runs the sweep."""
    return f"echo-lm sweep run {shown(sweep)}"


def shown(sweep: Path) -> str:
    """The sweep's argument on the command line: its name if it comes with the package, else its file."""
    return str(sweep) if str(sweep) in sweep_names() else Path(sweep).name


def as_page(
    report: Report, command: str, prose: str, figures: Sequence[str], numbers: str, lines: int | None = None
) -> str:
    """The report in Markdown, of at most `lines` lines: tables of details that do not fit are left out and counted.

    Args:
        prose: of the notes; figures: names of files in `figures/`; numbers: link to the rows.
    """
    sweep, names = report.sweep, report.tasks
    made = origin(report)
    most = "at most " if sweep.each_cell and sweep.each_cell.enough and len(report.found) < report.planned else ""
    parts = [f"# Recall sweep: {sweep.name}", sweep.description, prose]
    parts.append(
        f"{len(report.found)} of {most}{report.planned} runs, on {', '.join(made['hardware'])}, "
        f"torch {', '.join(made['torch'])}, "
        f"{' and '.join(dict.fromkeys((made['dates'][0], made['dates'][-1])))}, commit {', '.join(made['commits'])}. "
        f"Every cell: [{Path(numbers).name}]({numbers}). This page is made by `echo-lm sweep report`; "
        f"prose belongs into `{sweep.name}.notes.md`. It all again:\n\n    {command}"
    )
    parts.append(_protocol(report))
    if gone := incomplete(report):
        parts.append("**Not complete.** " + " ".join(gone))
    parts += [accuracy_by_task(report), intervals_by_task(report), published_cells(report)]
    parts += ["\n".join(f"![{Path(file).stem}](figures/{file})" for file in figures)]
    details = accuracy_by_state(report) + accuracy_by_budget(report)
    details += accuracy_by_length(report) if LENGTH_TASK in names else []
    details += accuracy_by_cell(report) if report.sweep.each_cell else []
    details += [accuracy_by_label(report), learning_rates_tried(report)]
    left_out = 0
    for detail in details:
        if lines is None or len("\n\n".join([*parts, detail]).splitlines()) <= lines - LINES_OF_REMARK:
            parts.append(detail)
        else:
            left_out += 1
    if left_out:
        parts.append(
            f"Tables left out: {left_out}; `echo-lm sweep report {sweep.name}` without `--lines` makes them from the same rows."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(report: Report) -> str:
    """The section on how the models were trained and evaluated."""
    sweep, training, each = report.sweep, report.sweep.training, report.sweep.each_cell
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
        lengths = " or ".join(map(str, training.lengths))
        tasks = " and ".join(training.tasks) if training.mix is None else f"the mix {training.mix!r}"
        learned = (
            f"Trained for {training.steps:,} steps of {training.batch_sequences} sequences of {lengths} tokens on {tasks}, "
            "unless the arm says otherwise"
        )
    rates = ""
    if len(sweep.learning_rates) > 1:
        rates = f" {'A cell' if each else 'An arm'}'s learning rate is the best on the very answers shown here."
    if each and each.enough is not None:
        rates += f" A cell gets another rate only where none before it answered {100 * each.enough:g}%."
    seeds_note = (
        "Each seed is evaluated on sequences of its own."
        if sweep.own_queries
        else "All seeds are evaluated on the same sequences."
    )
    return f"{learned}.{rates} {seeds_note}"


def incomplete(report: Report) -> list[str]:
    """Sentences about runs that are missing, diverged or of another version of the sweep."""
    arms: dict[str, list[str]] = {}  # what is said, of whom
    for arm in report.arms:
        if arm.missing and not arm.chosen:
            arms.setdefault("no run is there", []).append(arm.name)
        elif arm.missing:
            if report.sweep.each_cell:
                missing = _cells_at(report, arm.missing)
            else:
                missing = _at((run.training.learning_rate, run.seed) for run in arm.missing)
            arms.setdefault(f"missing {missing}", []).append(arm.name)
        if arm.diverged:
            diverged = _at((run["learning_rate"], run["seed"]) for run in arm.diverged)
            arms.setdefault(f"diverged {diverged}", []).append(arm.name)
    lines = [f"{', '.join(names)}: {said}." for said, names in arms.items()]
    if report.outdated:
        lines.append(f"{report.outdated} runs of an earlier version of the sweep are left out.")
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
    """Cells without a trained model, by learning rate; some need none, as another rate has answered enough of the cell."""
    cells: dict[float, list[str]] = {}
    for run in runs:
        (cell,) = run.cells
        seed = f" seed {run.seed}" if len(report.sweep.seeds) > 1 else ""
        cells.setdefault(run.training.learning_rate, []).append(f"{cell.pairs} at {cell.gap:,}{seed}")
    return "; ".join(f"{', '.join(found)} (rate {rate:g})" for rate, found in sorted(cells.items()))
