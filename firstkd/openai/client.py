"""Requests to a server with OpenAI's interface: what comes back, and what can go wrong."""

import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class RefusedError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, reason: str, retry_after: float | None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.reason = reason
        """What the server says, shortened and without the key."""
        self.retry_after = retry_after
        """Seconds that it asks the client to wait."""


class UnreadableReplyError(Exception):
    """The server's reply cannot be used; the message says why, in a few words."""


class Client:
    """Client for one server: bounded replies, no redirects, and never the key in a message."""

    def __init__(
        self, url: str, key: str | None, timeout_seconds: float, largest_reply: int
    ) -> None:
        """`url` includes the /v1; a reply of more than `largest_reply` bytes is refused."""
        self._url, self._key, self._largest = url.rstrip("/"), key, largest_reply
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # the caller limits concurrent requests
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout_seconds, limits=limits, follow_redirects=False
        )

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._request("POST", path, json=body)

    async def get(self, path: str) -> Any:
        return await self._request("GET", path)

    async def _request(self, method: str, path: str, **body: Any) -> Any:
        """Return the parsed reply.

        Raises RefusedError, UnreadableReplyError or httpx.TransportError.
        """
        async with self._client.stream(method, f"{self._url}/{path}", **body) as response:
            text = bytearray()
            async for part in response.aiter_bytes():
                text += part
                if len(text) > self._largest:
                    raise UnreadableReplyError("a reply too large")
        if response.status_code != 200:
            after = _seconds(response.headers.get("Retry-After"))
            raise RefusedError(response.status_code, self._reason(text), after)
        try:
            return json.loads(text)
        except ValueError as error:
            raise UnreadableReplyError("a reply that is not JSON") from error

    def _reason(self, text: bytearray) -> str:
        words = " ".join(text.decode(errors="replace").split())
        return (words.replace(self._key, "***") if self._key else words)[:300]

    async def close(self) -> None:
        await self._client.aclose()


def _seconds(retry_after: str | None) -> float | None:
    """Read Retry-After: seconds, or a date (RFC 9110, sec. 10.2.3); None for anything else."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
