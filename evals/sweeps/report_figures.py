"""The figures of a report on a recall sweep."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
from matplotlib.ticker import FuncFormatter

from ..figures.recall import MARKERS, accuracy_by_length, heat_map
from ..figures.style import BASELINE, PALETTE, figure
from .report_state import state_figures
from .results import LENGTH_TASK, Report, labels_of

MOST_FIGURES = 2  # of one label


def figures_of(report: Report) -> dict[str, Callable[[Path], Path]]:
    """The drawing function of each figure of a report, by the name of its file."""
    name = report.sweep.name
    figures: dict[str, Callable[[Path], Path]] = {f"{name}_mean.png": partial(mean_figure, report)}
    if len(report.tasks) > 1:
        figures[f"{name}_tasks.png"] = partial(task_figure, report)
    for label in labels_of(report, LENGTH_TASK):
        curves = {arm: rows for arm, rows in report.by_length(label).items() if len(rows) > 1}
        # A figure tells as many arms apart as there are markers.
        groups = np.array_split(list(curves), -(-len(curves) // len(MARKERS))) if curves else []
        if len(groups) > MOST_FIGURES:  # nobody compares curves across so many; the page has the numbers
            continue
        for number, group in enumerate(groups, 1):
            shown = {str(arm): curves[str(arm)] for arm in group}
            file = f"{name}_{label}{f'_{number}' if len(groups) > 1 else ''}.png"
            figures[file] = partial(accuracy_by_length, arms=shown, label=label)
    return figures | state_figures(report)


def draw(report: Report, folder: Path) -> list[str]:
    """Draw all figures into `folder`; returns their names. Those of an earlier report that are no longer drawn are removed."""
    figures = figures_of(report)
    for file, draw_one in figures.items():
        draw_one(folder / file)
    for old in folder.glob(f"{report.sweep.name}_*.png"):
        if old.name not in figures:
            old.unlink()
    return list(figures)


def mean_figure(report: Report, path: Path) -> Path:
    """Figure of the mean accuracy of every arm: a dot per seed, a line at the median."""
    arms = [arm for arm in report.arms if arm.chosen]
    with figure(path, f"Mean accuracy: {report.sweep.name}", "accuracy", "", height=1.2 + 0.3 * len(arms)) as axes:
        for place, arm in enumerate(arms):
            means = [report.mean(result) for result in arm.chosen]
            axes.plot(means, [place] * len(means), "o", color=PALETTE[0], alpha=0.6)
            axes.plot([median(means)] * 2, [place - 0.3, place + 0.3], color=PALETTE[0])
        chance = fmean(map(report.chance, report.mean_of))
        axes.axvline(chance, color=BASELINE, linestyle="--", linewidth=1.2, label=f"chance {chance:.1%}")
        axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axes.set(xlim=(-0.02, 1.03), ylim=(len(arms) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return path


def task_figure(report: Report, path: Path) -> Path:
    """Heat map of arms by tasks: medians over seeds, and what was published below them."""
    arms = [arm for arm in report.arms if arm.chosen]
    lines = {
        arm.name: [median(report.task_mean(result, task) for result in arm.chosen) for task in report.tasks]
        for arm in arms
    }
    for name, means in (report.sweep.published.means if report.sweep.published else {}).items():
        lines[f"{name} (published)"] = [means.get(task, np.nan) / 100 for task in report.tasks]
    values = np.array(list(lines.values()))
    title = f"Accuracy by task: {report.sweep.name}"
    return heat_map(path, title, values, list(lines), report.tasks, tilt=30)
