"""`echo-lm serve`: checks folders and address, then serves the dashboard until interrupted."""

import ipaddress
import socket
from pathlib import Path

from ...models.common.errors import UserError, not_installed
from ..progress.bars import console

LOOPBACK = "127.0.0.1"


def serve(runs: Path, studies: Path, host: str = LOOPBACK, port: int = 8484) -> None:
    """Serve the dashboard; returns when the process is interrupted.

    Args:
        host: the address to listen on. Any but loopback is open to whoever reaches it: there is no login.
        port: 0 takes a free one.

    Raises:
        UserError: no such folder, an address or port that cannot be bound, or the extra `serve` is not installed.
    """
    for name, folder in (("runs", runs), ("studies", studies)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name the folder that holds the {name} (--{name})")
    if not runs.is_dir() and not studies.is_dir():
        raise UserError(f"there is no folder {runs}: name the one that holds the runs (--runs), or start a run first")
    try:
        import uvicorn

        from .app import make_app, plotly_script

        plotly_script()
    except ModuleNotFoundError as error:
        raise not_installed(error) or error from error
    with _listen(host, port) as listener:
        host, port = listener.getsockname()[:2]
        url_host = f"[{host}]" if ":" in host else host
        console.print(f"dashboard: http://{url_host}:{port}  (Ctrl-C ends it)")
        if not is_loopback(host):
            console.print(f"{host} is not loopback: whoever reaches this port can read {runs} and {studies}")
        app = make_app(runs, studies, allowed_hosts(host))
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def allowed_hosts(host: str) -> list[str]:
    """Permitted names in the Host header: on loopback only its own, elsewhere any."""
    return [LOOPBACK, "localhost", "[::1]"] if is_loopback(host) else ["*"]


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
