"""What stands before the application: a body's size, a login, and the time a request may take."""

import asyncio
import hmac
import logging
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firstkd.serving.metrics import Metrics
from firstkd.serving.settings import LimitSettings

OPEN = {"/health"}
"""Needs no login."""

log = logging.getLogger(__name__)


class Guard:
    """Refuses what exceeds the limits or has no login; counts and logs it without its content."""

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
        if not self._may_enter(scope):
            refusal = JSONResponse({"error": "a valid token is needed"}, 401)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
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

    def _may_enter(self, scope: Scope) -> bool:
        if self._login is None or scope["path"] in OPEN:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._login)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None as soon as it is too large."""
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


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _shown(scope: Scope) -> str:
    """Return a path without user content: one that the server has, or a word for all others."""
    path = str(scope["path"])
    return path if path in ("/answer", "/health", "/metrics", "/docs") else "another path"
