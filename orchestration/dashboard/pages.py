"""Rendering of the pages from their templates, with every value escaped, and the static files that they use."""

import gzip
import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..monitor.summary import RunSummary
from .formats import FILTERS
from .run_view import RunDetail

HERE = Path(__file__).parent
PARTS = ("head", "tiles", "evaluations", "results", "events")


class Pages:
    """Renders the HTML templates."""

    def __init__(self, prefix: str = "") -> None:
        """Prepare the templates; `prefix` stands before every address."""
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters |= FILTERS
        self._templates.globals |= {"root": prefix, "asset": lambda name: prefix + asset_address(name)}
        self._templates.globals["use"] = self._templates.get_template("macros.html").module
        self._row = self._templates.get_template("row.html")
        self.row = lru_cache(maxsize=20_000)(self._render_row)

    def text(self, template: str, **values: Any) -> str:
        """Render a template to text."""
        return self._templates.get_template(template).render(**values)

    def _render_row(self, row: RunSummary, extra: tuple[tuple[str, str], ...] = ()) -> Markup:
        return Markup(self._row.render(row=row, extra=extra))

    def html(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a template as the response to a request."""
        return HTMLResponse(self.text(template, **values), status_code=status)

    def parts(self, run: RunDetail) -> dict[str, str]:
        """The changing parts of a run's page."""
        return {name: self.text(f"run_{name}.html", run=run) for name in PARTS}


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
