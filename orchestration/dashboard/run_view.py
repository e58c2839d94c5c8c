"""The detailed view of one run: the contents of its page and its curves."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evals.layout import is_of_average, result_path
from ...models.common.run_layout import checkpoint_name
from ...pipeline.run.reader import RunReader
from ..jobs.leases import looks_held
from ..monitor.summary import RunSummary, due_steps, section, suite_name
from .history import COLUMNS, History

HEADLINE_TASK = "sysprompt-4"
MOST_EVENTS = 200
MOST_VIEWS = 16


@dataclass(frozen=True)
class EvaluationStatus:
    """One evaluation: `state` is done, failed, running, pending or none (not configured); `text` its result in short."""

    state: str
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class RunDetail:
    """The contents of a run's page.

    Attributes:
        suites: columns of `matrix`, whose rows are checkpoints, newest first.
        latest: each suite's result on the newest evaluated checkpoint.
        events: newest first, without checkpoints, completed evaluations and health.
        checkpoints: the `checkpoint` events.
        curves: for the browser: columns of `history.COLUMNS`, held-out text, recall by label, marks.
    """

    summary: RunSummary
    config_text: str
    environment: dict[str, Any]
    last_step: dict[str, Any]
    suites: list[str]
    matrix: list[tuple[int, list[EvaluationStatus]]]
    latest: list[dict[str, Any]]
    heldout: float | None
    events: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    health: dict[str, Any] | None
    started: float | None
    restarts: int
    skips: int
    rollbacks: int
    problem: str | None
    curves: dict[str, Any]


@dataclass(frozen=True)
class _View:
    """What is kept of a run that is looked at."""

    reader: RunReader
    history: History
    lock: threading.Lock  # two requests for one page at once


class RunViews:
    """Detailed views of runs; what was read of the most recently viewed ones is kept."""

    def __init__(self) -> None:
        self._views: OrderedDict[Path, _View] = OrderedDict()

    def detail(self, folder: Path, summary: RunSummary) -> RunDetail:
        """Read a run in full."""
        view = self._views.pop(folder, None) or _View(RunReader(folder), History(folder), threading.Lock())
        self._views[folder] = view
        while len(self._views) > MOST_VIEWS:
            self._views.popitem(last=False)
        with view.lock:
            view.history.read()
            return _detail(view.reader, summary, view.history)


def _detail(run: RunReader, summary: RunSummary, history: History) -> RunDetail:
    results = run.results()
    starts = history.of_kind("start")
    suites, matrix = _matrix(run, results)
    latest = {result["suite"]: result for result in results}
    shown_events = [event for event in history.others if event["kind"] not in ("checkpoint", "evaluation")]
    raw = [result for result in results if not is_of_average(result["suite"])]
    heldout = [result for result in raw if "language/bits_per_byte" in result["metrics"]]
    return RunDetail(
        summary=summary,
        config_text=run.config_text(),
        environment=run.environment(),
        last_step=history.last_step,
        suites=suites,
        matrix=matrix,
        latest=[latest[suite] for suite in sorted(latest)],
        heldout=heldout[-1]["metrics"]["language/bits_per_byte"] if heldout else None,
        events=_numbered(shown_events)[::-1][:MOST_EVENTS],
        checkpoints=history.of_kind("checkpoint"),
        health=history.health,
        started=starts[0]["time"] if starts else None,
        restarts=max(0, len(starts) - 1),
        skips=len(history.of_kind("skip")),
        rollbacks=len(history.of_kind("rollback")),
        problem=history.problem,
        curves=_curves(history, raw, heldout),
    )


def headline(result: dict[str, Any]) -> str:
    """The main number of a suite's result, as text."""
    metrics = result["metrics"]
    if "language/bits_per_byte" in metrics:
        return f"{metrics['language/bits_per_byte']:.3f} bits/byte"
    if result.get("rows"):
        values = [row["accuracy"] for row in result["rows"]]
        return f"{sum(values) / len(values):.1%} recalled"
    scored = [row["accuracy"] for row in result.get("tasks") or () if "accuracy" in row]
    if scored:
        return f"{sum(scored) / len(scored):.1%} right"
    if result.get("decode"):
        return f"{result['decode'][-1]['tokens_per_second']:,.0f} tokens/s"
    return "done"


def _matrix(
    run: RunReader, results: list[dict[str, Any]]
) -> tuple[list[str], list[tuple[int, list[EvaluationStatus]]]]:
    config = run.config()
    configured = [suite_name(name) for name in section(config, "evaluation").get("suites") or ()]
    suites = list(dict.fromkeys([*configured, *(result["suite"] for result in results)]))
    result_of = {(result["step"], result["suite"]): result for result in results}
    steps = sorted({step for step, _ in run.complete_steps()} | {step for step, _ in result_of}, reverse=True)
    failure_messages, rows = run.failures(), []
    due_here = due_steps(run, config, [step for step, _ in run.complete_steps()])
    for step in steps:
        due = step in due_here
        name = checkpoint_name(step)
        cells = (
            _cell(
                result_of.get((step, suite)),
                result_path(run.folder, name, suite),
                failure_messages.get(f"{name}/{suite}"),
                due and suite in configured,
            )
            for suite in suites
        )
        rows.append((step, list(cells)))
    return suites, rows


def _cell(result: dict[str, Any] | None, output: Path, failure: str | None, due: bool) -> EvaluationStatus:
    if result is not None:
        return EvaluationStatus("done", headline(result), f"took {result['ended'] - result['started']:.1f} s")
    if looks_held(output.with_suffix(".lease")):
        return EvaluationStatus("running", "running")
    if failure is not None:
        return EvaluationStatus("failed", "failed", failure)
    return EvaluationStatus("pending", "waiting") if due else EvaluationStatus("none")


def _numbered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, with the number of the attempt added to every `start`."""
    attempt, numbered = 0, []
    for event in events:
        if event["kind"] == "start":
            attempt += 1
            event = event | {"attempt": attempt}
        numbered.append(event)
    return numbered


def _curves(history: History, results: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> dict[str, Any]:
    curves: dict[str, Any] = {name: curve for name in COLUMNS if (curve := history.curve(name))}
    if heldout:
        last = heldout[-1]["metrics"]
        curves["heldout"] = {
            "step": [result["step"] for result in heldout],
            "value": [result["metrics"]["language/bits_per_byte"] for result in heldout],
            "unigram": last.get("language/unigram_bits_per_byte"),
            "gzip": last.get("language/gzip_bits_per_byte"),
        }
    curves["recall"] = _recall_curves(results)
    curves["marks"] = [
        {"step": event.get("step", 0), "kind": event["kind"]}
        for event in _numbered(history.of_kind("start", "rollback"))
        if event["kind"] != "start" or event["attempt"] > 1
    ]
    return curves


def _recall_curves(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recall against length, a curve per checkpoint, for each label measured at several lengths; the headline task first."""
    keys = ("length", "accuracy", "low", "high", "queries", "chance")
    labels: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for result in results:
        for row in result.get("rows") or ():
            point = {key: row[key] for key in keys}
            labels.setdefault(row["label"], {}).setdefault(result["step"], []).append(point)
    charts = []
    for label in sorted(labels, key=lambda label: (label != HEADLINE_TASK, label)):
        curves = [
            {"step": step, "points": sorted(points, key=lambda point: point["length"])}
            for step, points in sorted(labels[label].items())
        ]
        if len({point["length"] for curve in curves for point in curve["points"]}) > 1:
            charts.append({"label": label, "checkpoints": curves})
    return charts
