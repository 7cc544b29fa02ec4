"""The guard in front of the application: body size, login, and the time a request may take.

Without a login only this machine may ask, and only under its own name: a web page that points its
own name here (DNS rebinding) is refused by its Host header.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import time
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstkd.serving.metrics import Metrics
from firstkd.serving.settings import LimitSettings

OPEN = {"/health"}
"""Paths that need no login."""
STOPPING_SECONDS = 0.5
"""How long a stopping server waits for the rest of a request that it refuses."""

log = logging.getLogger(__name__)


class Guard:
    """Refuses requests over the limits or without a login; counts and logs them without content."""

    def __init__(
        self, app: ASGIApp, limits: LimitSettings, metrics: Metrics, token: str | None
    ) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._login = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        finally:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.monotonic() - began)
            if status >= 400:
                log.warning("refused a request to %s with status %d", _shown(scope), status)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refusal := self._refusal(scope):
            if scope["app"].state.stopping:
                # the connection closes next, which would cut off a client that is still sending
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOPPING_SECONDS):
                        await self._body(scope, receive)
            await refusal(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start" and scope["app"].state.stopping:
                # otherwise the client asks again on a connection that is about to close
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(scope, receive)
                if body is None:
                    words = f"the body exceeds {self.limits.body_bytes} bytes"
                    await JSONResponse({"error": words}, 413)(scope, receive, noted)
                    return
                await self.app(scope, _replayed(body, receive), noted)
        except TimeoutError:
            if begun:
                raise
            words = f"not answered within {self.limits.seconds:g} seconds"
            await JSONResponse({"error": words}, 504)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if scope["app"].state.stopping:
            again = {"Retry-After": "5", "Connection": "close"}
            return JSONResponse({"error": "the server is stopping"}, 503, again)
        if self._login is None and not is_loopback(_host(headers.get(b"host", b""))):
            return JSONResponse({"error": "the Host header does not name this machine"}, 421)
        if self._login is None or scope["path"] in OPEN:
            return None
        if hmac.compare_digest(headers.get(b"authorization", b""), self._login):
            return None
        login = {"WWW-Authenticate": "Bearer"}
        return JSONResponse({"error": "a valid token is needed"}, 401, login)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None as soon as it is too large."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self.limits.body_bytes:
            return None
        body = b""
        while True:
            message = await receive()
            body += bytes(message.get("body", b""))
            if len(body) > self.limits.body_bytes:
                return None
            if not message.get("more_body", False):
                return body


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(header: bytes) -> str:
    """Return the name in a Host header without its port, or an empty string."""
    try:
        return urlsplit(f"//{header.decode('ascii')}").hostname or ""
    except ValueError:
        return ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _shown(scope: Scope) -> str:
    """Return a path without user content: one that the server has, or a phrase for all others."""
    path = str(scope["path"])
    return path if path in ("/answer", "/health", "/metrics", "/docs") else "another path"
