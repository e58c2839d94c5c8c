"""The page that compares runs, and the numbers of tables and curves as JSON and CSV."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse, Response

from ...models.common.errors import UserError
from .curves.history import COLUMNS
from .curves.overlay import AXES, MOST_RUNS, overlay
from .pages import Pages
from .pairs import accuracy_differences, text_differences
from .run_view import RunViews
from .table import RunTable
from .values import EVALUATION, RunValues, differences, group_labels

Names = Annotated[list[str], Query()]
MOST_METRICS = 8  # charts at once
MOST_LOGS = 10  # runs whose logs are read for the names of further curves
MOST_CELLS = 5000  # of a table, so that no page is larger than a few megabytes
SUMMARY = (
    "name",
    "state",
    "model",
    "data",
    "step",
    "steps",
    "loss",
    "tokens_per_second",
    "checkpoint",
    "updated",
    "parent",
)


def add_comparison(app: FastAPI, pages: Pages, table: RunTable, views: RunViews, values: RunValues) -> None:
    """Add the routes `/compare` and `/api/...`."""

    def chosen(run: list[str]) -> dict[str, Path]:
        names = list(dict.fromkeys(run))[:MOST_RUNS]
        missing = [name for name in names if not table.is_readable(name)]
        if missing:
            raise HTTPException(404, f"there is no readable run {missing[0]}")
        return {name: table.folder / name for name in names}

    def series_of(run: list[str], metric: str, x: str, group: str, metrics: int) -> list[dict[str, Any]]:
        folders = chosen(run)
        labels = group_labels({name: values.of(name) for name in folders}, group)
        try:
            return overlay(folders, metric, x, labels, views.history, metrics=metrics)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    def names_in_logs(folders: list[Path]) -> list[str]:
        """Names of the curves that depend on the log: losses by text source, measures of SKA layers."""
        found = {name for folder in folders[:MOST_LOGS] for name in views.history(folder, seconds=0.0).names}
        return sorted(found)[:MOST_CELLS]

    @app.get("/compare")
    def compare_page(run: Names = []) -> Response:  # noqa: B006 (FastAPI reads it)
        names, folders = list(chosen(run)), list(chosen(run).values())
        own = {name: values.of(name) for name in names}
        lines = MOST_CELLS // max(1, len(names))
        evaluated = sorted({key for value in own.values() for key in value if key.startswith(EVALUATION)})
        return pages.html(
            "compare.html",
            names=names,
            differences=differences(own)[:lines],
            metrics=[(key, [value.get(key) for value in own.values()]) for key in evaluated[:lines]],
            columns=[*COLUMNS, *names_in_logs(folders), *evaluated[:MOST_CELLS]],
            groups=[key for key, _ in differences(own)][:200],
            axes=AXES,
            recall=accuracy_differences(*folders) if len(folders) == 2 else [],
            text=text_differences(*folders) if len(folders) == 2 else [],
        )

    @app.get("/api/curves")
    def curves(run: Names = [], metric: Names = ["loss"], x: str = "step", group: str = "") -> Response:  # noqa: B006
        return JSONResponse(
            {name: series_of(run, name, x, group, len(metric[:MOST_METRICS])) for name in metric[:MOST_METRICS]}
        )

    @app.get("/api/curves.csv")
    def curves_csv(run: Names = [], metric: Names = ["loss"], x: str = "step", group: str = "") -> Response:  # noqa: B006
        lines = [
            (name, one["label"], at, y, low, high)
            for name in metric[:MOST_METRICS]
            for one in series_of(run, name, x, group, len(metric[:MOST_METRICS]))
            for at, y, low, high in zip(one["x"], one["y"], *_bounds(one), strict=True)
        ]
        return _csv("curves.csv", ("metric", "run", x, "value", "low", "high"), lines)

    @app.get("/api/columns")
    def columns() -> Response:
        return JSONResponse(values.columns())

    @app.get("/api/runs")
    def runs(column: Names = []) -> Response:  # noqa: B006
        return JSONResponse([_record(row, values, column) for row in table.rows()[1]])

    @app.get("/api/runs.csv")
    def runs_csv(column: Names = []) -> Response:  # noqa: B006
        records = [_record(row, values, column) for row in table.rows()[1]]
        header = (*SUMMARY, *column)
        return _csv("runs.csv", header, [tuple(record.get(name) for name in header) for record in records])


def _record(row: Any, values: RunValues, columns: list[str]) -> dict[str, Any]:
    summary = asdict(row)
    own = values.of(row.name) if columns else {}
    return {name: summary[name] for name in SUMMARY} | {name: own.get(name) for name in columns}


def _bounds(series: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    nothing = [None] * len(series["x"])
    return series.get("low", nothing), series.get("high", nothing)


def _csv(name: str, header: tuple[str, ...], lines: list[tuple[Any, ...]]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_cell(value) for value in line] for line in lines])
    disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.getvalue().encode(errors="replace"), media_type="text/csv; charset=utf-8", headers=disposition)


def _cell(value: Any) -> Any:
    """A value as CSV; a text that a spreadsheet would take for a formula gets a quotation mark before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
