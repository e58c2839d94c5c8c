"""The web application: HTML pages, and JSON endpoints by which open pages update themselves."""

import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...models.common.cached_files import is_inside, read_regular, subfolders
from ...models.common.run_layout import EVALUATION_LEASES
from ..jobs.leases import looks_held
from ..monitor.summary import RunSummary, unreadable
from .comparison import Names, add_comparison
from .formats import address, shown, sort_key
from .guard import Guard
from .nodes import list_nodes
from .pages import Pages, assets
from .run_view import RunViews, document
from .studies import figure_names, list_studies, study_detail, study_runs
from .table import RunTable
from .values import MOST_COLUMNS, RunValues

# Rows that the page of runs shows at first; the others are sent with it, but hidden, which saves their layout.
SHOWN_ROWS = 100
MOST_ROWS = 2000  # most rows of that page, so that no response is larger than a few megabytes
MOST_FIGURE_BYTES = 5 << 20
STUDY_LOOK_SECONDS = 0.05  # time for reading the log of each cell; the cell's own page reads the rest


def make_app(
    runs: Path, studies: Path, hosts: list[str], *, views: RunViews | None = None, prefix: str = "", token: str = ""
) -> Guard:
    """Make the application that serves the runs and studies of two folders.

    Args:
        hosts: permitted names in the Host header; others are refused, against DNS rebinding by foreign pages.
        views: what was read of single runs, shared with who reads ahead.
        prefix: see `Guard`.
        token: see `Guard`.
    """
    app = FastAPI(title="Echo-LM", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=3)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    pages, views = Pages(prefix), views or RunViews()
    table = RunTable(runs)
    for row in table.rows()[1]:  # the first page then need not wait for thousands of files
        pages.row(row)
    _add_errors(app, pages)
    values = RunValues(table)
    _add_runs(app, pages, table, views, values)
    add_comparison(app, pages, table, views, values)
    _add_studies(app, pages, studies, views)

    @app.get("/nodes")
    def nodes_page() -> Response:
        return pages.html("nodes.html", nodes=list_nodes(runs, table.rows()[1], studies))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        asset = assets().get(name)
        if asset is None:
            raise HTTPException(404, "there is no such file")
        media, body = asset
        cached = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Encoding": "gzip"}
        return Response(body, media_type=media, headers=cached)

    return Guard(app, prefix=prefix, token=token)


def _add_errors(app: FastAPI, pages: Pages) -> None:
    @app.exception_handler(404)
    async def not_found(request: Request, error: Any) -> Response:
        message = getattr(error, "detail", "") or "there is no such page"
        return pages.html("missing.html", status=404, message=message)


def _add_runs(app: FastAPI, pages: Pages, table: RunTable, views: RunViews, values: RunValues) -> None:
    def rendered(row: RunSummary, column: list[str]) -> str:
        own = values.of(row.name) if column else {}
        return pages.row(row, tuple((shown(own.get(key)), sort_key(own.get(key))) for key in column[:MOST_COLUMNS]))

    @app.get("/")
    def runs_page(column: Names = []) -> Response:  # noqa: B006 (FastAPI reads it)
        version, summaries = table.rows()
        rows = [rendered(row, column) for row in summaries[:MOST_ROWS]]
        return pages.html(
            "runs.html",
            rows=rows,
            columns=column[:MOST_COLUMNS],
            hidden=max(0, len(summaries) - MOST_ROWS),
            counts=table.counts(),
            version=version,
            shown=SHOWN_ROWS,
            folder=str(table.folder),
        )

    @app.get("/live/runs")
    def runs_changes(since: str, column: Names = []) -> Response:  # noqa: B006
        changes = table.changes(since)
        if changes is None:
            return JSONResponse({"reload": True})
        rows = {row.name: rendered(row, column) for row in changes.changed[:MOST_ROWS]}
        summary = pages.text("counts.html", counts=changes.counts)
        return JSONResponse({"version": changes.version, "rows": rows, "gone": changes.removed, "counts": summary})

    @app.get("/runs/{name}")
    def run_page(name: str) -> Response:
        return _run_page(pages, views, table, name, f"/live/runs/{address(name)}")

    @app.get("/runs/{name}/{what}")
    def run_document(name: str, what: str) -> Response:
        _find(table, name)
        page = document(table.folder / name, what) if table.is_readable(name) else None
        if page is None:
            raise HTTPException(404, "this run has no such document")
        return Response(page.encode(errors="replace"), media_type="text/html; charset=utf-8")

    @app.get("/live/runs/{name}")
    def run_changes(name: str, since: str = "") -> Response:
        return _run_changes(pages, views, table, name, since)


def _add_studies(app: FastAPI, pages: Pages, studies: Path, views: RunViews) -> None:
    cell_tables: dict[str, RunTable] = {}

    def cells_of(study: str) -> RunTable:
        if study not in {entry.name for entry in subfolders(studies)}:
            raise HTTPException(404, "there is no such study")
        return cell_tables.setdefault(study, RunTable(studies / study / "runs"))

    @app.get("/studies")
    def studies_page() -> Response:
        return pages.html("studies.html", studies=list_studies(studies), folder=str(studies))

    @app.get("/studies/{study}")
    def study_page(study: str) -> Response:
        cells_of(study)
        study_view = study_detail(studies / study)
        if study_view is None:
            raise HTTPException(404, "this study has no readable plan.json")
        return pages.html("study.html", study=study_view)

    @app.get("/live/studies/{study}")
    def study_curves(study: str) -> Response:
        cells_of(study)
        study_view = study_detail(studies / study)
        if study_view is None:
            return JSONResponse({})
        runs = study_runs(study_view, studies / study, lambda run: views.history(run, STUDY_LOOK_SECONDS))
        return JSONResponse(study_view.curves | {"runs": runs})

    @app.get("/studies/{study}/figures/{name}.png")
    def figure(study: str, name: str) -> Response:
        cells_of(study)
        path = studies / study / "figures" / f"{name}.png"
        if name not in figure_names(studies / study) or not is_inside(path, studies / study):
            raise HTTPException(404, "there is no such figure")
        return _figure(path)

    @app.get("/studies/{study}/runs/{name}")
    def cell_page(study: str, name: str) -> Response:
        live = f"/live/studies/{address(study)}/runs/{address(name)}"
        return _run_page(pages, views, cells_of(study), name, live, study)

    @app.get("/live/studies/{study}/runs/{name}")
    def cell_changes(study: str, name: str, since: str = "") -> Response:
        return _run_changes(pages, views, cells_of(study), name, since)


def _find(table: RunTable, name: str) -> RunSummary:
    # The name is looked up among the existing folders, never joined to a path unchecked.
    summary = table.row(name)
    if summary is None:
        raise HTTPException(404, "there is no such run")
    return summary


def _run_page(
    pages: Pages, views: RunViews, table: RunTable, name: str, live: str, study: str | None = None
) -> Response:
    summary = _find(table, name)
    if table.is_readable(name):
        try:
            return pages.html("run.html", run=views.detail(table.folder / name, summary), live=live, study=study)
        except Exception as error:  # a folder with unforeseen contents
            summary = unreadable(table.folder / name, error)
    return pages.html("damaged.html", summary=summary, study=study)


def _run_changes(pages: Pages, views: RunViews, table: RunTable, name: str, since: str) -> Response:
    """The changing parts of a run's page and its curves; status 204, and nothing is rendered, if their version is `since`."""
    summary, folder = _find(table, name), table.folder / name
    if not table.is_readable(name):
        return Response(status_code=204)
    try:
        history = views.history(folder)
        leases = [path.name for path in sorted(folder.glob(EVALUATION_LEASES)) if looks_held(path)]
        state = (table.stamps(name), summary, history.version, history.unread, leases)
        version = hashlib.sha256(repr(state).encode(errors="replace")).hexdigest()[:16]
        if version == since:
            return Response(status_code=204)
        run = views.detail(folder, summary)
        return JSONResponse({"version": version, "parts": pages.parts(run), "curves": run.curves})
    except Exception as error:
        damaged = pages.text("run_damaged.html", summary=unreadable(folder, error))
        return JSONResponse({"version": "damaged", "parts": {"head": damaged}})


def _figure(path: Path) -> Response:
    try:
        return Response(read_regular(path, MOST_FIGURE_BYTES), media_type="image/png")
    except OSError:
        raise HTTPException(404, "this figure cannot be read") from None
