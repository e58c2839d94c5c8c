"""A layer around the web application: security headers on every response, a path prefix, a token, and errors without traceback."""

import hmac
import logging
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

logger = logging.getLogger(__name__)

# Own resources only: the page works offline, and text from a run's files cannot load or run anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
COOKIE = "echo_lm_token"

App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """An ASGI middleware that checks the token, strips the path prefix and adds security headers."""

    def __init__(self, app: App, *, prefix: str = "", token: str = ""):
        """Wrap `app`.

        Args:
            prefix: the path below which a proxy shows the application, `/echo`; requests may come with it or without.
            token: what a request must know, as `?token=` once or as `Authorization: Bearer`; empty lets everybody in.
        """
        self._app, self._prefix, self._token = app, prefix, token
        self.active = 0  # requests that are being answered

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._prefix and (scope["path"] + "/").startswith(self._prefix + "/"):
            scope = scope | {"path": scope["path"][len(self._prefix) :] or "/"}
        started = False

        async def send_with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name.lower() for name, _ in message.get("headers", ())}
                own = (*HEADERS, (b"cache-control", b"no-store"))
                added = [(name, value) for name, value in own if name not in names]
                message = message | {"headers": [*message.get("headers", ()), *added]}
            await send(message)

        self.active += 1
        try:
            if self._token and not self._is_known(scope):
                await self._ask_for_token(scope, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except Exception as error:
            logger.warning("%s could not be answered (%s: %s)", scope["path"], type(error).__name__, error)
            if not started:
                await _answer(send_with_headers, 500, "This page could not be made; the server's output says why.")
        finally:
            self.active -= 1

    def _is_known(self, scope: Any) -> bool:
        headers = dict(scope["headers"])
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return False
        bearer = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ")
        cookie = cookies[COOKIE].value if COOKIE in cookies else ""
        return self._fits(bearer) or self._fits(cookie)

    def _fits(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    async def _ask_for_token(self, scope: Any, send: Any) -> None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._fits(given):
            await _answer(
                send, 401, "This dashboard asks for its token: open the address that `echo-lm serve` printed."
            )
            return
        cookie = f"{COOKIE}={self._token}; Path={self._prefix or '/'}; HttpOnly; SameSite=Strict"
        # Without the token in the address, which lands in histories.
        await _answer(
            send, 303, "", (b"location", (self._prefix + scope["path"]).encode()), (b"set-cookie", cookie.encode())
        )


async def _answer(send: Any, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    common = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*common, *headers]})
    await send({"type": "http.response.body", "body": body})
