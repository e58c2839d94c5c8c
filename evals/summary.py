"""What the evaluations of a run have found, as one page and its figures, from the result files alone.

`evals/summary.md` and `evals/figures/*.png`; the same results give the same bytes.
"""

from pathlib import Path
from typing import Any

from ..models.common.files import read_json, write_text
from ..models.common.run_layout import EVALS
from .figures import recall as recall_figures
from .figures.style import human_bytes

CAPACITY_TASK = "mqar"
CURVES = 6


def write_summary(run_folder: Path) -> Path:
    """Write the page of a run, complete or not; returns its path.

    Raises:
        UserError: a result file is corrupt.
    """
    folder = Path(run_folder) / EVALS
    results = [read_json(path) for path in sorted(folder.glob("*/*.json"))]
    sections = [f"# Evaluations of {Path(run_folder).resolve().name}"]
    for suite in sorted({result["suite"] for result in results}):
        sections.append(_suite(folder, suite, [result for result in results if result["suite"] == suite]))
    if not results:
        sections.append("No checkpoint has been evaluated yet.")
    path = folder / "summary.md"
    text = "\n\n".join(sections) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # what did not change is not new to MLflow
        write_text(path, text)
    return path


def _suite(folder: Path, suite: str, results: list[dict[str, Any]]) -> str:
    results = sorted(results, key=lambda result: result["step"])
    last = results[-1]
    adapted = ", on an adapted copy (training held no recall)" if last.get("adapted") else ""
    parts = [f"## {suite}\n\nCheckpoints: {len(results)}. Below: step {last['step']:,}{adapted}."]
    if last["rows"]:
        parts += _recall(folder, suite, results)
    language = {name: value for name, value in last["metrics"].items() if name.endswith("/bits_per_byte")}
    if language:
        lines = [(name.removesuffix("/bits_per_byte"), f"{value:.3f}") for name, value in language.items()]
        parts.append(_table(("held-out text", "bits per byte"), lines))
    if last.get("tasks"):
        parts.append(_table(("task", "queries", "accuracy", "95% interval", "chance"), map(_task_line, last["tasks"])))
    if last.get("skipped"):
        parts.append(f"Left out: {_by_reason(last['skipped'])}.")
    if last.get("decode"):
        parts.append(_table(("context", "tokens / s", "state", "peak memory"), map(_decode_line, last["decode"])))
    return "\n\n".join(parts)


def _recall(folder: Path, suite: str, results: list[dict[str, Any]]) -> list[str]:
    rows, model = results[-1]["rows"], results[-1].get("model") or {}
    figures = folder / "figures"
    labels = list(dict.fromkeys(row["label"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    drawn = []
    for task in tasks:
        some = [row for row in rows if row["task"] == task]
        if len({row["length"] for row in some}) > 1 or len({row["label"] for row in some}) > 1:
            drawn.append(recall_figures.accuracy_grid(figures / f"{suite}-{task}.png", rows, task))
    reach = {label: [row["length"] for row in rows if row["label"] == label] for label in labels}
    long = max(labels, key=lambda label: (max(reach[label]), len(reach[label])))
    if len(reach[long]) > 1:
        arm = {f"step {results[-1]['step']:,}": rows}
        drawn.append(recall_figures.accuracy_by_length(figures / f"{suite}-length.png", arm, long))
    if len({row["options"]["depth"] for row in rows if "depth" in row.get("options", {})}) > 1:
        drawn.append(recall_figures.depth_by_length(figures / f"{suite}-depth.png", rows))
    if len({row["pairs"] for row in rows if row["task"] == CAPACITY_TASK}) > 2:
        sizes = {"rank": model.get("rank"), "KiB of state": model.get("state_bytes", 0) / 1024}
        for unit, size in sizes.items():
            if size:
                path = figures / f"{suite}-pairs-per-{unit.split()[-1]}.png"
                arm = {model["name"]: (rows, size)}
                drawn.append(recall_figures.capacity_curve(path, arm, CAPACITY_TASK, unit))
    if len(results) > 1:
        first = list(dict.fromkeys(next(row["label"] for row in rows if row["task"] == task) for task in tasks))
        drawn.append(recall_figures.recall_by_tokens(figures / f"{suite}-training.png", results, first[:CURVES]))
    header = ("task", "pairs", "length", "queries", "accuracy", "95% interval", "chance", "ceiling")
    lines = [
        (
            row["label"],
            row["pairs"],
            f"{row['length']:,}",
            f"{row['queries']:,}",
            f"{row['accuracy']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['chance']:.1%}",
            f"{row.get('ceiling', 1):.0%}",
        )
        for row in rows
    ]
    return ["\n".join(f"![{path.stem}](figures/{path.name})" for path in drawn), _table(header, lines)]


def _task_line(row: dict[str, Any]) -> tuple[str, ...]:
    if "accuracy" not in row:
        return row["task"], "", ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items()), "", ""
    chance = "" if row["chance"] is None else f"{row['chance']:.1%}"
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    return row["task"], f"{row['queries']:,}", f"{row['accuracy']:.1%}", interval, chance


def _by_reason(skipped: dict[str, str]) -> str:
    tasks: dict[str, list[str]] = {}
    for task, reason in skipped.items():
        tasks.setdefault(reason, []).append(task)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in tasks.items())


def _decode_line(row: dict[str, Any]) -> tuple[str, ...]:
    peak = "" if row["peak_bytes"] is None else human_bytes(row["peak_bytes"])
    return f"{row['context']:,}", f"{row['tokens_per_second']:,.0f}", human_bytes(row["state_bytes"]), peak


def _table(header: tuple[str, ...], lines: Any) -> str:
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
