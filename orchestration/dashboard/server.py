"""`echo-lm serve`: checks folders and address, then serves the dashboard until interrupted."""

import asyncio
import ipaddress
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.common.cached_files import is_inside, stamp, subfolders
from ...models.common.errors import UserError, not_installed
from ...models.common.run_layout import EVENTS
from ..progress.bars import console

if TYPE_CHECKING:
    from .guard import Guard
    from .run_view import RunViews

LOOPBACK = "127.0.0.1"
REQUEST_SECONDS = 20.0  # in which a connection must send a whole request, or it is closed
LONG_LOG_BYTES = 8 << 20  # logs from this size on are read when the command starts
MOST_LONG_LOGS = 32
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def serve(
    runs: Path, studies: Path, host: str = LOOPBACK, port: int = 8484, *, prefix: str = "", token: str = ""
) -> None:
    """Serve the dashboard; returns when the process is interrupted.

    Args:
        host: the address to listen on. Any but loopback is open to whoever reaches it, unless a token is asked for.
        port: 0 takes a free one.
        prefix: path below which a proxy shows the dashboard.
        token: what a browser must know to see anything; empty lets everybody in.

    Raises:
        UserError: no such folder, an address or port that cannot be bound, a prefix that is no path, or the extra `serve` is not
            installed.
    """
    for name, folder in (("runs", runs), ("studies", studies)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name the folder that holds the {name} (--{name})")
    if not runs.is_dir() and not studies.is_dir():
        raise UserError(f"there is no folder {runs}: name the one that holds the runs (--runs), or start a run first")
    prefix = prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise UserError(f"--prefix {prefix} is no path: give one like /echo")
    if token and not re.fullmatch(r"[A-Za-z0-9._~-]{8,200}", token):
        raise UserError("--token takes 8 to 200 letters, digits and ._~-")
    try:
        import uvicorn

        from .app import make_app
        from .pages import plotly_script
        from .run_view import RunViews

        plotly_script()
    except ModuleNotFoundError as error:
        raise not_installed(error) or error from error
    with _listen(host, port) as listener:
        host, port = listener.getsockname()[:2]
        url_host = f"[{host}]" if ":" in host else host
        query = f"/?token={token}" if token else ""
        console.print(f"dashboard: http://{url_host}:{port}{prefix}{query}  (Ctrl-C ends it)")
        if not is_loopback(host) and not token:
            console.print(f"{host} is not loopback: whoever reaches this port can read {runs} and {studies} (--token)")
        views = RunViews()
        app = make_app(runs, studies, allowed_hosts(host), views=views, prefix=prefix, token=token)
        threading.Thread(target=read_long_logs, args=(runs, views, app), daemon=True).start()
        config = uvicorn.Config(app, http=_protocol(), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def read_long_logs(runs: Path, views: "RunViews", app: "Guard") -> None:
    """Read the newest long logs to their ends, so that a first look at such a run does not wait for it.

    It waits while requests are answered: beside a thread that computes, each of the thousands of calls for the state of a file
    waits 5 ms for Python's lock.
    """
    logs = [folder / EVENTS for folder in subfolders(runs) if is_inside(folder / EVENTS, runs)]
    long = [(found, path.parent) for path in logs if (found := stamp(path)) and found[1] >= LONG_LOG_BYTES]
    for _, folder in sorted(long, reverse=True)[:MOST_LONG_LOGS]:
        while views.history(folder, seconds=0.1).unread:
            while app.active:
                time.sleep(0.02)


def _protocol() -> type:
    """uvicorn's HTTP protocol, but a connection that sends no whole request is closed: uvicorn would keep it for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait(None)

        def _wait(self, before: Any) -> None:
            if self.transport.is_closing():
                return
            answering = self.cycle is not None and not self.cycle.response_complete
            if self._waited and self.cycle is before and not answering:
                self.transport.close()
                return
            self._waited = True
            self.loop.call_later(REQUEST_SECONDS, self._wait, self.cycle)

        _waited = False

    return Impatient


def allowed_hosts(host: str) -> list[str]:
    """Permitted names in the Host header: on loopback its own, on another address any."""
    return list(dict.fromkeys([host, LOOPBACK, "localhost", "::1"])) if is_loopback(host) else ["*"]


def is_loopback(host: str) -> bool:
    """Whether the address is reachable only from this machine."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(
            f"--host {host} is no address of this machine ({error.strerror}): leave it out for loopback"
        ) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except PermissionError:
        listener.close()
        raise UserError(f"port {port} may not be used by this user: name one above 1023 (--port)") from None
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host} port {port} ({error.strerror}): name a free port (--port 0 takes any)"
        ) from None
    return listener
