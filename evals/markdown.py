"""Markdown tables of evaluation pages and reports, and rendering of a report as one HTML page."""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path

from markdown_it import MarkdownIt

from ..models.common.cached_files import is_inside, read_regular

STYLE = "body{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}"
STYLE += "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ddd;padding:.2em .6em}"
MOST_FIGURE_BYTES = 5 << 20


def markdown_table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table with a line for each of `lines`."""
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def to_html(markdown: str, folder: Path, title: str) -> str:
    """Render a report as one HTML page with its figures inside; HTML in it is shown as text.

    Args:
        folder: holds the figures, `figures/*.png`; a link that leads out of it stays out of the page.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)

    def embed(match: re.Match[str]) -> str:
        path = folder / match[1]
        try:
            picture = read_regular(path, MOST_FIGURE_BYTES) if is_inside(path, folder) else b""
        except OSError:
            picture = b""
        return f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"'

    body = re.sub(r'src="((?:evals/)?figures/[^"]+\.png)"', embed, body)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'
