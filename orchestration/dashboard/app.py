"""The web application: HTML pages, and JSON endpoints by which open pages update themselves."""

import gzip
import hashlib
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...models.common.cached_files import subfolders
from ..monitor.summary import RunSummary
from .formats import FILTERS
from .nodes import list_nodes
from .run_view import RunDetail, RunViews
from .studies import figure_names, list_studies, study_detail
from .table import RunTable

HERE = Path(__file__).parent
# Own resources only: the page works offline, and text from a run's files cannot load or run anything.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'"
# Rows that the page of runs shows at first; the others are sent with it, but hidden, which saves their layout.
SHOWN_ROWS = 100


def make_app(runs: Path, studies: Path, hosts: list[str]) -> FastAPI:
    """Make the application that serves the runs and studies of two folders.

    Args:
        hosts: permitted names in the Host header; others are refused, against DNS rebinding by foreign pages.
    """
    app = FastAPI(title="Echo-LM", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=3)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    table, views, pages = RunTable(runs), RunViews(), _Pages()
    for row in table.rows()[1]:  # the first page then need not wait for thousands of files
        pages.row(row)
    cell_tables: dict[str, RunTable] = {}

    def cells_of(study: str) -> RunTable:
        names = {entry.name for entry in subfolders(studies)}
        if study not in names:
            raise HTTPException(404, "there is no such study")
        return cell_tables.setdefault(study, RunTable(studies / study / "runs"))

    def detail(runs_table: RunTable, name: str) -> RunDetail:
        # The name is looked up among the existing folders, never joined to a path unchecked.
        summary = runs_table.row(name)
        if summary is None:
            raise HTTPException(404, "there is no such run")
        return views.detail(runs_table.folder / name, summary)

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.exception_handler(404)
    async def not_found(request: Request, error: Any) -> Response:
        message = getattr(error, "detail", "") or "there is no such page"
        return pages.html("missing.html", status=404, message=message)

    @app.get("/")
    def runs_page() -> Response:
        version, rows = table.rows()
        rows = [pages.row(row) for row in rows]
        return pages.html(
            "runs.html", rows=rows, counts=table.counts(), version=version, shown=SHOWN_ROWS, folder=str(runs)
        )

    @app.get("/live/runs")
    def runs_changes(since: str) -> Response:
        changes = table.changes(since)
        if changes is None:
            return JSONResponse({"reload": True})
        rows = {row.name: pages.row(row) for row in changes.changed}
        summary = pages.text("counts.html", counts=changes.counts)
        return JSONResponse({"version": changes.version, "rows": rows, "gone": changes.removed, "counts": summary})

    @app.get("/runs/{name}")
    def run_page(name: str) -> Response:
        return pages.html("run.html", run=detail(table, name), live=f"/live/runs/{name}", study=None)

    @app.get("/live/runs/{name}")
    def run_changes(name: str, since: str = "") -> Response:
        return pages.parts(detail(table, name), since)

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
        return JSONResponse(study_view.curves if study_view else {})

    @app.get("/studies/{study}/figures/{name}.png")
    def figure(study: str, name: str) -> Response:
        cells_of(study)
        if name not in figure_names(studies / study):
            raise HTTPException(404, "there is no such figure")
        return FileResponse(studies / study / "figures" / f"{name}.png", media_type="image/png")

    @app.get("/studies/{study}/runs/{name}")
    def cell_page(study: str, name: str) -> Response:
        run = detail(cells_of(study), name)
        return pages.html("run.html", run=run, live=f"/live/studies/{study}/runs/{name}", study=study)

    @app.get("/live/studies/{study}/runs/{name}")
    def cell_changes(study: str, name: str, since: str = "") -> Response:
        return pages.parts(detail(cells_of(study), name), since)

    @app.get("/nodes")
    def nodes_page() -> Response:
        return pages.html("nodes.html", nodes=list_nodes(runs, table.rows()[1], studies))

    @app.get("/static/{name}")
    def static(name: str, request: Request) -> Response:
        asset = assets().get(name)
        if asset is None:
            raise HTTPException(404, "there is no such file")
        media, body = asset
        cached = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Encoding": "gzip"}
        return Response(body, media_type=media, headers=cached)

    return app


class _Pages:
    """Renders the templates, with every value escaped."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters |= FILTERS
        macros = self._templates.get_template("macros.html").module
        self._templates.globals |= {"asset": asset_address, "use": macros}
        self._row = self._templates.get_template("row.html")
        self.row = lru_cache(maxsize=20_000)(self._render_row)

    def text(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)

    def _render_row(self, row: RunSummary) -> Markup:
        return Markup(self._row.render(row=row))

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self.text(template, **values), status_code=status)

    def parts(self, run: RunDetail, since: str) -> Response:
        """The changing parts of a run's page and its curves; status 204 if their version is `since`."""
        names = ("head", "tiles", "evaluations", "results", "events")
        parts = {name: self.text(f"run_{name}.html", run=run) for name in names}
        version = hashlib.sha256(repr((parts, asdict(run.summary), _lengths(run.curves))).encode()).hexdigest()[:16]
        if version == since:
            return Response(status_code=204)
        return JSONResponse({"version": version, "parts": parts, "curves": run.curves})


def _lengths(curves: dict[str, Any]) -> list[Any]:
    return [
        (name, curve.get("step", ())[-1:], len(curve.get("step", ())))
        if isinstance(curve, dict)
        else (name, len(curve))
        for name, curve in curves.items()
    ]


@cache
def assets() -> dict[str, tuple[str, bytes]]:
    """Media type and gzipped bytes of the static files, by name: our own, and plotly's script from its Python package."""
    media = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    files = {path.name: path for path in (HERE / "static").iterdir() if path.suffix in media}
    own = {name: (media[path.suffix], gzip.compress(path.read_bytes(), 6, mtime=0)) for name, path in files.items()}
    return own | {"plotly.min.js": ("text/javascript", plotly_script())}


@cache
def plotly_script() -> bytes:
    """plotly.js, gzipped."""
    from importlib.resources import files

    return gzip.compress(files("plotly").joinpath("package_data", "plotly.min.js").read_bytes(), 5, mtime=0)


@lru_cache(maxsize=64)
def asset_address(name: str) -> str:
    """The address of a static file, `/static/style.css?v=1a2b3c`; it changes with the file, so that browsers may cache it."""
    return f"/static/{name}?v={hashlib.sha256(assets()[name][1]).hexdigest()[:10]}"
