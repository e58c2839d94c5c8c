"""Views of scaling studies, read from their folders: states of the cells, fitted laws, figures of the report."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...models.common.cached_files import read_json_if_whole, stamp, subfolders
from ...models.common.run_layout import CONFIG, REPORT
from ...pipeline.run.reader import RunReader
from ..jobs.leases import looks_held
from ..studies.analysis.captions import CAPTIONS
from ..studies.results import FILE_NAME as CELL_FILE

CELL_ORDER = ("running", "failed", "waiting", "done")


@dataclass(frozen=True)
class CellRow:
    """A row of a study's table of cells; `loss` is the evaluated loss of a finished cell, else that of its last step."""

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


@dataclass(frozen=True)
class StudySummary:
    """One row of the table of studies: `counts` are cells by state, `hours` the planned ones."""

    name: str
    question: str
    families: list[str]
    cells: int
    counts: dict[str, int]
    hours: float
    updated: float


@dataclass(frozen=True)
class StudyDetail:
    """The contents of a study's page: `fit` is `fit.json`, `answer` the sentences at the head of the report."""

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
    plan = read_json_if_whole(folder / "plan.json")
    try:
        return _summary(folder, plan, [_state(folder, cell["name"])[0] for cell in plan["cells"]]) if plan else None
    except (KeyError, TypeError):  # a plan of another version
        return None


def study_detail(folder: Path) -> StudyDetail | None:
    """The detailed view of one study; None if it has no readable plan."""
    plan = read_json_if_whole(folder / "plan.json")
    if plan is None:
        return None
    try:
        rows = [_row(folder, cell) for cell in plan["cells"]]
        summary = _summary(folder, plan, [row.state for row in rows])
    except (KeyError, TypeError):
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
        rows=rows,
        fit=read_json_if_whole(folder / "fit.json") or {},
        answer=_answer(folder / REPORT),
        figures=[(name, CAPTIONS.get(name, "")) for name in figure_names(folder)],
        curves={"families": families} if finished else {},
    )


def figure_names(folder: Path) -> list[str]:
    """Names of the figures of a study's report, in the report's order."""
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    return [name for name in CAPTIONS if name in names] + sorted(names - set(CAPTIONS))


def _summary(folder: Path, plan: dict[str, Any], states: list[str]) -> StudySummary:
    stamps = (stamp(folder / name) for name in ("plan.json", "fit.json", "runs", "report.md"))
    return StudySummary(
        name=folder.name,
        question=str(plan["study"]["question"]),
        families=list(plan["study"]["families"]),
        cells=len(plan["cells"]),
        counts={state: states.count(state) for state in CELL_ORDER},
        hours=float(plan["hours"]),
        updated=max(entry[0] / 1e9 for entry in stamps if entry),
    )


def _state(folder: Path, cell: str) -> tuple[str, dict[str, Any]]:
    """The state of a cell, and its record or failure."""
    record = read_json_if_whole(folder / "runs" / cell / CELL_FILE)
    if record is not None:
        return "done", record
    if looks_held(folder / "leases" / f"{cell}.lease"):
        return "running", {}
    failure = read_json_if_whole(folder / "failures" / f"{cell}.json")
    return ("failed", failure) if failure is not None else ("waiting", {})


def _row(folder: Path, cell: dict[str, Any]) -> CellRow:
    state, record = _state(folder, cell["name"])
    run = folder / "runs" / cell["name"]
    if state == "done":
        step, loss, rate = cell["steps"], record.get("loss"), record.get("tokens_per_second")
    else:
        events = RunReader(run).last_events(lambda events: any(event["kind"] == "step" for event in events))
        last = next((event for event in reversed(events) if event["kind"] == "step"), {})
        step, loss, rate = last.get("step", 0), last.get("loss"), last.get("tokens_per_second")
    return CellRow(
        name=cell["name"],
        family=cell["family"],
        size=cell["size"],
        state=state,
        step=step,
        steps=cell["steps"],
        parameters=cell["parameters"],
        tokens=cell["tokens"],
        flops=cell["flops"],
        loss=loss,
        tokens_per_second=rate,
        seconds=record.get("seconds") if state == "done" else None,
        error=str((record.get("errors") or [""])[-1]) if state == "failed" else "",
        has_run=(run / CONFIG).is_file(),
    )


def _answer(report: Path) -> list[tuple[str, str]]:
    """The sentences at the head of the report, `**Loss** (...): ...`, as pairs of heading and text."""
    try:
        head = report.read_text(encoding="utf-8").split("\n\n")[2]
    except (OSError, UnicodeDecodeError, IndexError):
        return []
    matches = (re.fullmatch(r"\*\*([^*]+)\*\*:?\s*(.+)", line) for line in head.splitlines())
    return [(match[1], match[2]) for match in matches if match]
