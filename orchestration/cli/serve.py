"""`echo-lm serve`: the dashboard."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Runs


def serve(
    runs: Runs = Path("runs"),
    studies: Annotated[Path, typer.Option(help="Folder that holds the studies.")] = Path("studies"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8484,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback is open to whoever reaches it.")
    ] = "127.0.0.1",
    prefix: Annotated[str, typer.Option(help="Path below which a proxy shows it, e.g. /echo.")] = "",
    token: Annotated[
        str,
        typer.Option(
            envvar="ECHO_LM_TOKEN", help="What a browser must know, for addresses that others reach.", metavar="TEXT"
        ),
    ] = "",
) -> None:
    """The dashboard: runs, curves, recall, evaluations, studies and nodes as a web page. Reads files only."""
    from ..dashboard.server import serve as serve_dashboard

    serve_dashboard(runs, studies, host, port, prefix=prefix, token=token)
