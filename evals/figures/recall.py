"""Figures of recall, from the rows of result files: grids, length, depth, capacity, training. Style: `style.py`.

An arm is a name and the rows measured on it (`evaluate_recall`); a figure of one run has one arm.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .style import BASELINE, PALETTE, figure, log2_axis, panels, short_number

Row = Mapping[str, Any]
MARKERS = "osD^vP*X"
PANEL_MARKERS = "osD^vP*Xp<>h"


def accuracy_grid(path: Path, rows: Sequence[Row], task: str) -> Path:
    """Heat map of one task's accuracy: a line for each number of pairs and set of options, a column for each length."""
    rows = [row for row in rows if row["task"] == task]
    lines = list(dict.fromkeys(row["label"] for row in sorted(rows, key=lambda row: (row["pairs"], row["label"]))))
    return _heat_map(path, f"Accuracy: {task}", rows, lines, "label", "")


def depth_by_length(path: Path, rows: Sequence[Row]) -> Path:
    """Heat map of accuracy on needles in a haystack: depth of the needle against length."""
    rows = [dict(row, depth=f"{row['options']['depth']:.0%}") for row in rows if "depth" in row["options"]]
    lines = sorted({row["depth"] for row in rows}, key=lambda depth: float(depth.rstrip("%")))
    return _heat_map(path, "Accuracy by depth of the needle", rows, lines, "depth", "depth in the haystack")


def accuracy_by_length(path: Path, arms: Mapping[str, Sequence[Row]], label: str) -> Path:
    """Accuracy against length (log axis) with 95% intervals, a curve for each arm, on the cells of one label."""
    with figure(path, f"Recall against length: {label}", "length of the sequence (tokens)", "accuracy") as axes:
        lengths: set[int] = set()
        chance = None
        for color, marker, (name, rows) in zip(PALETTE, MARKERS, arms.items(), strict=False):
            found = sorted((row for row in rows if row["label"] == label), key=lambda row: row["length"])
            if not found:
                continue
            _errorbar(axes, [row["length"] for row in found], found, color, marker, name)
            lengths |= {row["length"] for row in found}
            chance = found[0]["chance"]
        _finish(axes, chance)
        if lengths:
            log2_axis(axes, sorted(lengths))
    return path


def capacity_curve(path: Path, arms: Mapping[str, tuple[Sequence[Row], float]], task: str, unit: str) -> Path:
    """Accuracy against pairs per unit of memory (log axis): `unit` says what, e.g. "rank" or "KiB of state".

    Args:
        arms: rows, and how many of the unit the arm has.
    """
    with figure(path, f"Capacity: {task}", f"pairs / {unit}", "accuracy") as axes:
        chance = None
        for color, marker, (name, (rows, size)) in zip(PALETTE, MARKERS, arms.items(), strict=False):
            found = sorted((row for row in rows if row["task"] == task), key=lambda row: row["pairs"])
            if not found:
                continue
            _errorbar(axes, [row["pairs"] / size for row in found], found, color, marker, name)
            chance = found[0]["chance"]
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
        )
        _finish(axes, chance)
    return path


def accuracy_in_panels(
    path: Path,
    title: str,
    x: str,
    cells: Mapping[str, Mapping[str, Sequence[tuple[float, Row]]]],
    shown: Callable[[float], str],
) -> Path:
    """Accuracy against a size (log axis) with 95% intervals: a panel for each cell, and in it a curve for each name.

    Args:
        cells: sizes and rows of each curve of each cell.
        shown: a size as text.
    """
    names = list(dict.fromkeys(name for curves in cells.values() for name in curves))
    looks = {name: (PALETTE[i % len(PALETTE)], PANEL_MARKERS[i % len(PANEL_MARKERS)]) for i, name in enumerate(names)}
    lines = {}
    with panels(path, title, x, "accuracy", list(cells)) as axes:
        for cell, curves in cells.items():
            for name, points in curves.items():
                points = sorted(points, key=lambda point: point[0])
                sizes, rows = [size for size, _ in points], [row for _, row in points]
                lines[name] = _errorbar(axes[cell], sizes, rows, *looks[name], name)
        one = next(iter(axes.values()))  # the panels share their axes
        one.set_xscale("log", base=2)
        one.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
        one.xaxis.set_minor_locator(NullLocator())
        one.set_ylim(-0.02, 1.03)
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        drawing = one.get_figure()
        assert drawing is not None
        drawing.legend([lines[name] for name in names], names, loc="outside right upper")
    return path


def recall_by_tokens(path: Path, results: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Path:
    """Recall over training: accuracy at the longest length of each label, against training tokens.

    Args:
        results: contents of one suite's files.
    """
    with figure(path, "Recall over training", "training tokens", "accuracy") as axes:
        for color, marker, label in zip(PALETTE, MARKERS, labels, strict=False):
            points = []
            for result in sorted(results, key=lambda result: result["tokens"]):
                found = [row for row in result["rows"] if row["label"] == label]
                if found:
                    points.append((result["tokens"], max(found, key=lambda row: row["length"])))
            if points:
                tokens = [tokens for tokens, _ in points]
                rows = [row for _, row in points]
                _errorbar(axes, tokens, rows, color, marker, f"{label} at {rows[0]['length']:,}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        _finish(axes, None)
    return path


def _errorbar(axes: Axes, x: Sequence[float], rows: Sequence[Row], color: Any, marker: str, name: str) -> Any:
    """Draw one curve; returns what a legend needs."""
    y = np.array([row["accuracy"] for row in rows])
    bars = np.abs(np.array([[row["low"] for row in rows], [row["high"] for row in rows]]) - y)
    return axes.errorbar(x, y, yerr=bars, color=color, marker=marker, markersize=4.5, capsize=3, label=name)


def _finish(axes: Axes, chance: float | None) -> None:
    if chance is not None:
        axes.axhline(chance, color=BASELINE, linestyle="--", linewidth=1.2, label=f"chance {chance:.1%}")
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _heat_map(path: Path, title: str, rows: Sequence[Row], lines: list[str], key: str, name: str) -> Path:
    lengths = sorted({row["length"] for row in rows})
    values = np.full((len(lines), len(lengths)), np.nan)
    for row in rows:
        values[lines.index(row[key]), lengths.index(row["length"])] = row["accuracy"]
    columns = [short_number(length) for length in lengths]
    return heat_map(path, title, values, lines, columns, x="length of the sequence (tokens)", y=name)


def heat_map(
    path: Path,
    title: str,
    values: np.ndarray,
    lines: Sequence[str],
    columns: Sequence[str],
    *,
    x: str = "",
    y: str = "",
    tilt: float = 0,
) -> Path:
    """Draw a heat map of shares from 0 to 1, `[lines, columns]`, with their numbers; NaN stays white. `tilt`: of the columns'
    names, degrees."""
    import seaborn as sns

    with figure(path, title, "", "", height=1.3 + 0.34 * max(len(lines), 2)) as axes:
        axes.grid(False)
        sns.heatmap(
            values,
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="viridis",
            annot=np.vectorize(lambda value: "" if np.isnan(value) else f"{value:.0%}")(values),
            fmt="",
            annot_kws={"fontsize": 9},
            linewidths=0.6,
            cbar=False,
            xticklabels=columns,
            yticklabels=lines,
        )
        axes.set(xlabel=x, ylabel=y)  # seaborn removes the ticks, so they are set again
        axes.tick_params(axis="y", rotation=0)
        if tilt:
            axes.tick_params(axis="x", rotation=tilt)
    return path
