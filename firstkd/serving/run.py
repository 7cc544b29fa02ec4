"""Run the server until a signal stops it; it finishes the requests under way."""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from firstkd.errors import ConfigError
from firstkd.serving.limits import is_loopback
from firstkd.serving.settings import LimitSettings

TOKEN = "FIRSTKD_SERVE_TOKEN"
LINGER_SECONDS = 0.5
"""How long a stopping server still refuses with a status, before and after it stops listening."""
SHORTEST = 16
"""Minimum characters in a token; a shorter one can be guessed."""


def token_for(host: str, file: Path | None) -> str | None:
    """Return the token that clients must show, from a file or the environment.

    Raises ConfigError if it is too short, or missing although other machines can reach the host.
    """
    try:
        token = file.read_text(encoding="utf-8").strip() if file else os.environ.get(TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {file} cannot be read: {error}") from error
    if not token and file is None and is_loopback(host):
        return None
    if not token:
        raise ConfigError(
            f"other machines can reach {host}, so clients need a token: set {TOKEN}, or pass a "
            "file that holds one with --token-file"
        )
    if len(token) < SHORTEST or not token.isascii():
        raise ConfigError(f"the token must be at least {SHORTEST} ASCII characters")
    return token


class Server(uvicorn.Server):
    """A server that, for a moment while stopping, still refuses requests with a status.

    uvicorn alone silently closes connections whose request it has not read yet.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.stopping = True  # type: ignore[union-attr]
        await asyncio.sleep(LINGER_SECONDS)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_SECONDS)  # for clients accepted until now
        await super().shutdown(sockets)


def run(app: FastAPI, host: str, port: int, limits: LimitSettings) -> None:
    # uvicorn finishes what is under way, then raises the signal again
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # logging is the caller's
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(limits.seconds),
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run()
