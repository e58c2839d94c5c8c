"""Curves of several runs on one axis, continued back into their parents, single or as mean and band over a group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ....evals.layout import complete_checkpoints
from ....models import read_config
from ....models.accounting import training_flops
from ....models.common.cached_files import is_inside
from ....models.common.errors import UserError
from ....models.common.run_layout import MODEL
from ....pipeline.run.lineage import find_parent
from ....pipeline.run.reader import RunReader
from ....pipeline.run.untrusted import whole
from ..values import EVALUATION
from .history import COLUMNS, HEALTH, SOURCE, History

AXES = ("step", "tokens", "time", "flops")
MOST_POINTS = 800  # of a curve
MOST_POINTS_AT_ONCE = 100_000  # of all curves of an answer
MOST_ANCESTORS = 5
MOST_RUNS = 60

Curve = dict[str, list[float | None]]


def run_curve(
    folder: Path,
    metric: str,
    axis: str,
    history: Callable[[Path], History],
    *,
    most: int = MOST_POINTS,
    depth: int = 0,
) -> Curve | None:
    """The curve of a metric of a run, lists `x` and `y`, continued before its first step by the curves of its ancestors.

    Args:
        metric: a curve of training (`History.curve`), or `eval/SUITE/METRIC`, a point a checkpoint.
        axis: one of `AXES`; `time` is in seconds since the run's first event.
        history: reads the events of a run.

    Returns:
        None without a value; `own` is the index of the first point that is not an ancestor's.
    """
    reader = RunReader(folder)
    found = _evaluated(reader, metric) if metric.startswith(EVALUATION) else history(folder).curve(metric, most)
    curve = _on_axis(found, axis, folder, history) if found else {"x": [], "y": [], "step": []}
    lineage = reader.lineage() if axis != "time" and depth < MOST_ANCESTORS else None
    before: Curve = {"x": [], "y": [], "step": []}
    if lineage and lineage.parent and lineage.own_step:
        parent = find_parent(folder, lineage.parent)
        # Only runs beside this one: a file of a run must not make others readable.
        if parent is not None and is_inside(parent, folder.parent) and parent.resolve() != folder.resolve():
            earlier = run_curve(parent, metric, axis, history, most=most, depth=depth + 1) or before
            kept = [i for i, step in enumerate(earlier["step"]) if step is not None and step <= lineage.own_step]
            before = {key: [earlier[key][i] for i in kept] for key in before}
    joined: Any = {key: before[key] + curve[key] for key in before}
    return joined | {"own": len(before["x"])} if joined["x"] else None


def _evaluated(reader: RunReader, metric: str) -> dict[str, list[Any]] | None:
    """The values of an evaluation metric over a run's checkpoints."""
    suite, _, name = metric.removeprefix(EVALUATION).partition("/")
    points = [result for result in reader.results() if result["suite"] == suite and name in result["metrics"]]
    if not points:
        return None
    axes = {axis: [result[key] for result in points] for axis, key in (("step", "step"), ("tokens", "tokens"))}
    return axes | {"time": [result["ended"] for result in points], "value": [r["metrics"][name] for r in points]}


def _on_axis(found: dict[str, list[Any]], axis: str, folder: Path, history: Callable[[Path], History]) -> Curve:
    if axis == "time":
        first = history(folder).first_start
        begin = first["time"] if first else next((time for time in found["time"] if time is not None), 0.0)
        x = [None if time is None else max(0.0, time - begin) for time in found["time"]]
    elif axis == "flops":
        cost = flops_per_token(folder)
        x = [None if cost is None or tokens is None else cost * tokens for tokens in found["tokens"]]
    else:
        x = found[axis]
    kept = [i for i, value in enumerate(x) if value is not None]
    return {"x": [x[i] for i in kept], "y": [found["value"][i] for i in kept], "step": [found["step"][i] for i in kept]}


def flops_per_token(folder: Path) -> float | None:
    """Training FLOPs per token, from the config of the newest checkpoint's model and the length of a row; None before the first
    checkpoint."""
    length = whole(_section(RunReader(folder).config(), "train").get("sequence_length"), 1)
    checkpoints = [path for path, _ in complete_checkpoints(folder) if is_inside(path / MODEL / "config.json", folder)]
    if length is None or not checkpoints:
        return None
    try:
        return training_flops(read_config(checkpoints[-1] / MODEL), length)
    except (UserError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def overlay(
    folders: dict[str, Path],
    metric: str,
    axis: str,
    labels: dict[str, str],
    history: Callable[[Path], History],
    *,
    metrics: int = 1,
) -> list[dict[str, Any]]:
    """The curves of runs, those with one label as their mean.

    Args:
        folders: of the runs, by name.
        labels: the group of each run (`values.group_labels`).
        metrics: of how many metrics the answer has curves; with many, each has fewer points.

    Returns:
        of each label `x`, `y`, the names of its `runs`, for one run the index `own`, for several `low` and `high`, one standard
        deviation from the mean.

    Raises:
        UserError: no such metric or axis.
    """
    if axis not in AXES:
        raise UserError(f"x is one of {', '.join(AXES)}")
    if metric not in COLUMNS and not metric.startswith((EVALUATION, SOURCE, HEALTH)):
        others = f"{EVALUATION}SUITE/METRIC, {SOURCE}SOURCE or {HEALTH}MEASURE/LAYER"
        raise UserError(f"metric is one of {', '.join(COLUMNS)}, {others}")
    grouped: dict[str, list[tuple[str, Any]]] = {}
    most = min(MOST_POINTS, MOST_POINTS_AT_ONCE // max(1, metrics * min(len(folders), MOST_RUNS)))
    for name, folder in list(folders.items())[:MOST_RUNS]:
        if curve := run_curve(folder, metric, axis, history, most=most):
            grouped.setdefault(labels[name], []).append((name, curve))
    series = []
    for label, members in grouped.items():
        names, curves = [name for name, _ in members], [curve for _, curve in members]
        if len(curves) == 1:
            only = {key: curves[0][key] for key in ("x", "y", "own")}
            series.append({"label": label, "runs": names} | only)
        else:
            series.append({"label": label, "runs": names} | mean_and_band(curves))
    return series


def mean_and_band(curves: list[Curve]) -> dict[str, list[float]]:
    """Mean and standard deviation of curves where all of them are, on the points of the first; linear between points."""
    ordered = []
    for curve in curves:
        x, y = np.array(curve["x"], dtype=float), np.array(curve["y"], dtype=float)
        order = np.argsort(x, kind="stable")
        ordered.append((x[order], y[order]))
    low, high = max(x[0] for x, _ in ordered), min(x[-1] for x, _ in ordered)
    grid = ordered[0][0]
    grid = grid[(grid >= low) & (grid <= high)]
    values = np.array([np.interp(grid, x, y) for x, y in ordered])
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    bands = {"y": mean, "low": mean - deviation, "high": mean + deviation}
    return {"x": grid.tolist()} | {key: value.tolist() for key, value in bands.items()}
