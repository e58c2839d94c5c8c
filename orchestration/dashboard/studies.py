"""Views of scaling studies, read from their folders: states of the cells, fitted laws, figures of the report."""

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...evals.layout import complete_steps
from ...models.common.cached_files import is_inside, read_json_if_whole, read_regular, stamp, subfolders
from ...models.common.run_layout import CONFIG, REPORT
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import number, text, whole
from ..jobs.leases import looks_held
from ..monitor.summary import shown_name
from ..studies.analysis.captions import CAPTIONS
from ..studies.results import FILE_NAME as CELL_FILE
from .curves.history import History
from .curves.overlay import run_curve

CELL_ORDER = ("running", "failed", "waiting", "done", "left out")
MOST_CELLS, MOST_FIGURES = 2000, 100
MOST_RUNS, MOST_RUN_POINTS = 60, 300  # with a curve


@dataclass(frozen=True)
class CellRow:
    """A row of a study's table of cells and trunks.

    Attributes:
        loss: the evaluated loss of a finished cell, else that of its last step.
        branches: how many cells branch from a trunk; 0 for a cell.
        trunk, branch_step: the trunk that a cell branches from, and where; empty without.
    """

    name: str
    family: str
    size: str
    state: str
    step: int
    steps: int
    parameters: int
    tokens: int
    flops: float
    loss: float | None
    tokens_per_second: float | None
    seconds: float | None
    error: str = ""
    has_run: bool = False
    branches: int = 0
    trunk: str = ""
    branch_step: int = 0


@dataclass(frozen=True)
class StudySummary:
    """One row of the table of studies: `counts` are numbers of cells by state, `hours` the planned hours, `problem` why it
    cannot be read."""

    name: str
    question: str
    families: list[str]
    cells: int
    counts: dict[str, int]
    hours: float
    updated: float
    problem: str = ""


@dataclass(frozen=True)
class StudyDetail:
    """The contents of a study's page: `rows` trunks before cells, `fit` is `fit.json`, `answer` the head of the report."""

    summary: StudySummary
    rows: list[CellRow]
    fit: dict[str, Any]
    answer: list[tuple[str, str]]
    figures: list[tuple[str, str]]
    curves: dict[str, Any] = field(default_factory=dict)


def list_studies(folder: Path) -> list[StudySummary]:
    """The studies below a folder, most recently changed first."""
    summaries = [summary for entry in subfolders(folder) if (summary := study_summary(entry))]
    return sorted(summaries, key=lambda summary: -summary.updated)


def study_summary(folder: Path) -> StudySummary | None:
    """The row of one study; None if it has no readable plan."""
    plan = _read(folder, "plan.json")
    if plan is None:
        return None
    try:
        left_out = _left_out(folder)
        return _summary(folder, plan, [_state(folder, cell["name"], left_out)[0] for cell in _cells(plan)])
    except Exception as error:  # a folder with unforeseen contents must not hide the others
        problem = f"it cannot be read ({type(error).__name__}: {text(str(error), 200)})"
        return StudySummary(shown_name(folder.name), "", [], 0, dict.fromkeys(CELL_ORDER, 0), 0.0, 0.0, problem)


def study_detail(folder: Path) -> StudyDetail | None:
    """The detailed view of one study; None if it has no readable plan."""
    plan = _read(folder, "plan.json")
    if plan is None:
        return None
    try:
        left_out = _left_out(folder)
        rows = [_row(folder, cell, left_out) for cell in _cells(plan)]
        trunks = [_trunk_row(folder, cell, rows) for cell in _cells(plan, "trunks")]
        summary = _summary(folder, plan, [row.state for row in rows])
    except Exception:  # as in `study_summary`
        return None
    finished = [row for row in rows if row.state == "done" and row.loss is not None]
    families = {
        family: {
            "name": [row.name for row in finished if row.family == family],
            "flops": [row.flops for row in finished if row.family == family],
            "loss": [row.loss for row in finished if row.family == family],
        }
        for family in summary.families
    }
    return StudyDetail(
        summary=summary,
        rows=[*trunks, *rows],
        fit=_fit(folder),
        answer=_answer(folder / REPORT) if is_inside(folder / REPORT, folder) else [],
        figures=[(name, CAPTIONS.get(name, "")) for name in figure_names(folder)],
        curves={"families": families} if finished else {},
    )


def figure_names(folder: Path) -> list[str]:
    """Names of the figures of a study's report, in the report's order; without links that lead out of the study."""
    paths = [path for path in (folder / "figures").glob("*.png") if path.is_file() and is_inside(path, folder)]
    names = {path.stem for path in paths[:MOST_FIGURES] if shown_name(path.stem) == path.stem}
    return [name for name in CAPTIONS if name in names] + sorted(names - set(CAPTIONS))


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    return read_json_if_whole(path) if is_inside(path, folder) else None


def _cells(plan: dict[str, Any], key: str = "cells") -> list[dict[str, Any]]:
    """The cells, or the trunks, of a plan whose names are names of folders: `../x` would lead out of the study."""
    planned = plan["cells"] if key == "cells" else plan.get(key) or []
    cells = [cell for cell in planned[:MOST_CELLS] if isinstance(cell, dict)]
    return [cell for cell in cells if isinstance(cell.get("name"), str) and _is_folder_name(cell["name"])]


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set("/\\\0") & set(name) and shown_name(name) == name


def _fit(folder: Path) -> dict[str, Any]:
    """Contents of `fit.json` for display: the metric of the loss, and the laws with their values and intervals."""
    stored = _read(folder, "fit.json") or {}
    laws, stored_laws = [], stored.get("laws")
    for law in stored_laws if isinstance(stored_laws, list) else ():
        if isinstance(law, dict):
            values = {key: law[key] for key in ("E", "A", "B", "alpha", "beta") if isinstance(law.get(key), dict)}
            whole_law = values if len(values) == 5 else {}
            names = {"family": text(law.get("family"), 80), "cells": number(law.get("cells"))}
            laws.append(names | {"note": text(law.get("note"))} | whole_law)
    return {"loss": text(stored.get("loss"), 80), "laws": laws[:100]}


def _summary(folder: Path, plan: dict[str, Any], states: list[str]) -> StudySummary:
    stamps = (stamp(folder / name) for name in ("plan.json", "fit.json", "runs", "report.md"))
    return StudySummary(
        name=shown_name(folder.name),
        question=text(plan["study"]["question"]),
        families=[text(family, 80) for family in list(plan["study"]["families"])[:100]],
        cells=len(states),
        counts={state: states.count(state) for state in CELL_ORDER},
        hours=_needed("hours", number(plan["hours"])),
        updated=max(entry[0] / 1e9 for entry in stamps if entry),
    )


def _left_out(folder: Path) -> set[str]:
    """Names of the cells that no longer fit into the study's GPU-hours, by its last choice."""
    choices = (_read(folder, "spending.json") or {}).get("choices")
    last = choices[-1] if isinstance(choices, list) and choices else None
    names = last.get("left_out") if isinstance(last, dict) else None
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _state(folder: Path, cell: str, left_out: Container[str] = ()) -> tuple[str, dict[str, Any]]:
    """The state of a cell, and its record or failure."""
    record = _read(folder, f"runs/{cell}/{CELL_FILE}")
    if record is not None:
        return "done", record
    if looks_held(folder / "leases" / f"{cell}.lease"):
        return "running", {}
    failure = _read(folder, f"failures/{cell}.json")
    if failure is not None:
        return "failed", failure
    return "left out" if cell in left_out else "waiting", {}


def _row(folder: Path, cell: dict[str, Any], left_out: Container[str] = ()) -> CellRow:
    state, record = _state(folder, cell["name"], left_out)
    run = folder / "runs" / cell["name"]
    if state == "done":
        step, loss, rate = whole(cell["steps"]), number(record.get("loss")), number(record.get("tokens_per_second"))
    else:
        events = RunReader(run).last_events(lambda events: any(event["kind"] == "step" for event in events))
        last = next((event for event in reversed(events) if event["kind"] == "step"), {})
        step, loss, rate = last.get("step", 0), last.get("loss"), last.get("tokens_per_second")
    return CellRow(
        name=cell["name"],
        family=text(cell["family"], 80),
        size=text(cell["size"], 80),
        state=state,
        step=step or 0,
        steps=_needed("steps", whole(cell["steps"])),
        parameters=_needed("parameters", whole(cell["parameters"])),
        tokens=_needed("tokens", whole(cell["tokens"])),
        flops=_needed("flops", number(cell["flops"])),
        loss=loss,
        tokens_per_second=rate,
        seconds=number(record.get("seconds")) if state == "done" else None,
        error=_last_error(record) if state == "failed" else "",
        has_run=(run / CONFIG).is_file() and is_inside(run, folder),
        trunk=text(cell.get("trunk"), 120),
        branch_step=whole(cell.get("branch_step")) or 0,
    )


def _trunk_row(folder: Path, trunk: dict[str, Any], cells: list[CellRow]) -> CellRow:
    """The row of a trunk; it is done when it has the checkpoint of the last step from which a cell branches."""
    row = _row(folder, trunk)
    branches = [cell.branch_step for cell in cells if cell.trunk == row.name]
    last = max(branches, default=row.steps)
    reached = (
        max((step for step, _ in complete_steps(folder / "runs" / trunk["name"])), default=0) if row.has_run else 0
    )
    state = "done" if reached >= last else row.state
    return replace(row, state=state, steps=last, branches=len(branches), error="" if state == "done" else row.error)


def study_runs(study: StudyDetail, folder: Path, history: Callable[[Path], History]) -> list[dict[str, Any]]:
    """The loss over tokens of the runs of a study, trunks first; what a cell took from its trunk stands before it (`run_curve`)."""
    curves = []
    for row in [row for row in study.rows if row.has_run][:MOST_RUNS]:
        if curve := run_curve(folder / "runs" / row.name, "loss", "tokens", history, most=MOST_RUN_POINTS):
            curves.append(
                {"name": row.name, "trunk": row.branches > 0} | {key: curve[key] for key in ("x", "y", "own")}
            )
    return curves


def _needed(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{name} in plan.json is no number")
    return value


def _last_error(failure: dict[str, Any]) -> str:
    errors = failure.get("errors")
    return text(errors[-1]) if isinstance(errors, list) and errors else "it failed"


def _answer(report: Path) -> list[tuple[str, str]]:
    """The sentences at the head of the report, `**Loss** (...): ...`, as pairs of heading and text."""
    try:
        head = read_regular(report).decode(errors="replace").split("\n\n")[2]
    except (OSError, IndexError):
        return []
    matches = (re.fullmatch(r"\*\*([^*]+)\*\*:?\s*(.+)", line) for line in head.splitlines()[:20])
    return [(text(match[1]), text(match[2], 2000)) for match in matches if match]
