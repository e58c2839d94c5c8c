"""The detailed view of one run: the contents of its page and its curves."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evals.layout import is_of_average, result_path
from ...evals.markdown import to_html
from ...models.common.cached_files import is_inside
from ...models.common.run_layout import REPORT, checkpoint_name
from ...pipeline.run.lineage import find_parent
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import computed_config, file_text, number, text
from ..jobs.leases import looks_held
from ..monitor.summary import RunSummary, due_steps, shown_name, suite_name
from .curves.history import COLUMNS, LOOK_SECONDS, History
from .formats import count, decimals, percent

HEADLINE_TASK = "sysprompt-4"
MOST_EVENTS = 200
MOST_VIEWS = 64
MOST_DOCUMENT = 1_000_000  # characters
DOCUMENTS = {"report": REPORT, "model_card": "model_card.md", "evaluations": "evals/summary.md"}
MOST_CHECKPOINTS = 200  # rows of the evaluations
MOST_SUITES = 40
MOST_LABELS = 60  # of recall charts
MOST_CURVES = 40  # checkpoints of one
MOST_RESULT_ROWS = 2000
MOST_POINTS_OF_MANY = 400  # of each curve where there may be a hundred


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
        checkpoints: the newest `checkpoint` events.
        documents: which of `DOCUMENTS` the run has.
        parent: name of the run beside it that it began from; empty if there is none.
        children: names of the runs beside it that began from it, with the step.
        unread: bytes of the log that later looks will read.
        curves: for the browser: `history.COLUMNS`, losses by source, SKA layers, held-out text, recall by label, marks.
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
    unread: int
    health: dict[str, Any] | None
    started: float | None
    restarts: int
    skips: int
    rollbacks: int
    problem: str | None
    documents: list[str]
    parent: str
    children: list[tuple[str, int]]
    curves: dict[str, Any]


@dataclass(frozen=True)
class _View:
    """The cached contents of a run that is being viewed; `history` has the lock."""

    reader: RunReader
    history: History


class RunViews:
    """Detailed views of runs; what was read of the most recently viewed ones is kept. Used by several threads."""

    def __init__(self) -> None:
        self._views: OrderedDict[Path, _View] = OrderedDict()
        self._lock = threading.Lock()

    def detail(self, folder: Path, summary: RunSummary) -> RunDetail:
        """Read a run's new data, as much as one call reads, and return the contents of its page."""
        view = self._view(folder)
        with view.history.lock:  # two requests for one page at once
            view.history.read()
            return _detail(view.reader, summary, view.history)

    def history(self, folder: Path, seconds: float = LOOK_SECONDS) -> History:
        """The events of a run, after reading as many new ones as one call reads."""
        history = self._view(folder).history
        history.read(seconds)
        return history

    def unread(self, folder: Path) -> int:
        """Bytes of a run's log that the last call left unread."""
        with self._lock:
            view = self._views.get(folder)
            return view.history.unread if view else 0

    def _view(self, folder: Path) -> _View:
        with self._lock:
            view = self._views.pop(folder, None) or _View(RunReader(folder), History(folder))
            self._views[folder] = view
            while len(self._views) > MOST_VIEWS:
                self._views.popitem(last=False)
            return view


def _detail(run: RunReader, summary: RunSummary, history: History) -> RunDetail:
    results = run.results()
    suites, matrix = _matrix(run, results)
    latest = {result["suite"]: result for result in results}
    shown_events = [event for event in history.others if event["kind"] not in ("checkpoint", "evaluation")]
    raw = [result for result in results if not is_of_average(result["suite"])]
    heldout = [result for result in raw if "language/bits_per_byte" in result["metrics"]]
    return RunDetail(
        summary=summary,
        config_text=run.config_text(),
        environment=_environment(run.environment()),
        last_step=history.last_step,
        suites=suites,
        matrix=matrix,
        latest=_bounded([latest[suite] for suite in sorted(latest)[:MOST_SUITES]]),
        heldout=heldout[-1]["metrics"]["language/bits_per_byte"] if heldout else None,
        events=[_shown_event(event) for event in shown_events[::-1][:MOST_EVENTS]],
        checkpoints=history.of_kind("checkpoint"),
        unread=history.unread,
        health=_health(history.health),
        started=history.first_start["time"] if history.first_start else None,
        restarts=max(0, history.counts.get("start", 0) - 1),
        skips=history.counts.get("skip", 0),
        rollbacks=history.counts.get("rollback", 0),
        problem=history.problem,
        documents=[name for name, file in DOCUMENTS.items() if _is_document(run.folder, file)],
        parent=_parent(run),
        children=[(name, parent.step) for name, parent in run.children()],
        curves=_curves(history, raw, heldout),
    )


def _parent(run: RunReader) -> str:
    lineage = run.lineage()
    folder = find_parent(run.folder, lineage.parent) if lineage and lineage.parent else None
    return shown_name(folder.name) if folder and folder.resolve().parent == run.folder.resolve().parent else ""


def _bounded(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results with at most `MOST_RESULT_ROWS` rows in all, so that no page is larger than a few megabytes."""
    left, bounded = MOST_RESULT_ROWS, []
    for result in results:
        parts = {}
        for name in ("rows", "tasks", "decode"):
            parts[name] = result[name][:left]
            left -= len(parts[name])
        bounded.append(result | parts)
    return bounded


def document(folder: Path, name: str) -> str | None:
    """A document of a run, such as its report, as one HTML page; None if it has none of that name."""
    file = DOCUMENTS.get(name)
    if file is None or not _is_document(folder, file):
        return None
    return to_html(file_text(folder / file, MOST_DOCUMENT), folder, f"{name.replace('_', ' ')} of {folder.name}")


def _is_document(folder: Path, file: str) -> bool:
    return (folder / file).is_file() and is_inside(folder / file, folder)


def headline(result: dict[str, Any]) -> str:
    """The main number of a suite's result, as text."""
    metrics = result["metrics"]
    if "language/bits_per_byte" in metrics:
        return f"{decimals(metrics['language/bits_per_byte'])} bits/byte"
    if result.get("rows"):
        values = [row["accuracy"] for row in result["rows"]]
        return f"{percent(sum(values) / len(values))} recalled"
    scored = [row["accuracy"] for row in result.get("tasks") or () if "accuracy" in row]
    if scored:
        return f"{percent(sum(scored) / len(scored))} right"
    if result.get("decode") and result["decode"][-1]["tokens_per_second"] is not None:
        return f"{count(result['decode'][-1]['tokens_per_second'])} tokens/s"
    return "done"


def _matrix(
    run: RunReader, results: list[dict[str, Any]]
) -> tuple[list[str], list[tuple[int, list[EvaluationStatus]]]]:
    config = computed_config(run.config())
    configured = [suite_name(name) for name in config["evaluation"]["suites"]]
    suites = list(dict.fromkeys([*configured, *(result["suite"] for result in results)]))[:MOST_SUITES]
    result_of = {(result["step"], result["suite"]): result for result in results}
    steps = sorted({step for step, _ in run.complete_steps()} | {step for step, _ in result_of}, reverse=True)
    failure_messages, rows = run.failures(), []
    due_here = due_steps(run, config, [step for step, _ in run.complete_steps()], run.stopped_at())
    for step in steps[:MOST_CHECKPOINTS]:
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
        times = result["started"], result["ended"]
        took = "" if None in times else f"took {decimals(times[1] - times[0], 1)} s"
        return EvaluationStatus("done", headline(result), took)
    if looks_held(output.with_suffix(".lease")):
        return EvaluationStatus("running", "running")
    if failure is not None:
        return EvaluationStatus("failed", "failed", text(failure, 160))
    return EvaluationStatus("pending", "waiting") if due else EvaluationStatus("none")


def _shown_event(event: dict[str, Any]) -> dict[str, Any]:
    """The event with values that can be shown: numbers, and texts of a bounded length."""
    known = {key: event[key] for key in ("kind", "time", "step", "tokens", "attempt") if event.get(key) is not None}
    others = list(event.items())[:40]
    return {text(key, 80): text(value) if number(value) is None else value for key, value in others} | known


def _health(event: dict[str, Any] | None) -> dict[str, Any] | None:
    """The `health` event with its layers as rows of numbers; None without any."""
    if not event:
        return None
    layers = event.get("layers")
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    keys = [text(key, 80) for key in list(layers[0])[:20]]
    rows = [{key: number(layer.get(key)) for key in keys} for layer in layers[:200]]
    return {"step": event.get("step"), "layers": rows}


def _environment(values: dict[str, Any]) -> dict[str, Any]:
    """The environment as texts, one level of sections deep."""
    return {
        text(key, 80): {text(name, 80): text(item, 200) for name, item in list(value.items())[:100]}
        if isinstance(value, dict)
        else text(value, 200)
        for key, value in list(values.items())[:100]
    }


def _curves(history: History, results: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> dict[str, Any]:
    curves: dict[str, Any] = {name: curve for name in COLUMNS if (curve := history.curve(name))}
    curves |= {name: curve for name in history.names if (curve := history.curve(name, MOST_POINTS_OF_MANY))}
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
        for event in history.of_kind("start", "rollback")[-MOST_EVENTS:]
        if event["kind"] != "start" or event["attempt"] > 1
    ]
    return curves


def _spread(steps: list[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread, first and last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _recall_curves(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recall against length, a curve per checkpoint, for each label measured at several lengths; the headline task first."""
    keys = ("length", "accuracy", "low", "high", "queries", "chance")
    labels: dict[str, dict[int, list[dict[str, Any]]]] = {}
    shown = set(_spread(sorted({result["step"] for result in results if result["rows"]}), MOST_CURVES))
    for result in results:
        for row in result["rows"] if result["step"] in shown else ():
            point = {key: row[key] for key in keys}
            if not point["length"] or point["length"] <= 0:
                continue
            labels.setdefault(row["label"], {}).setdefault(result["step"], []).append(point)
    charts = []
    for label in sorted(labels, key=lambda label: (label != HEADLINE_TASK, label))[:MOST_LABELS]:
        curves = [
            {"step": step, "points": sorted(points, key=lambda point: point["length"])}
            for step, points in sorted(labels[label].items())
        ]
        if len({point["length"] for curve in curves for point in curve["points"]}) > 1:
            charts.append({"label": label, "checkpoints": curves})
    return charts
