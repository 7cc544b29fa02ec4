"""A model behind a server: a limited number of parallel requests, retried if that may help."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

import httpx

from firstkd.errors import ConfigError, PipelineError, SourceError, UnreachableError
from firstkd.models.init.server import ServerInit
from firstkd.openai.client import Client, RefusedError, UnreadableReplyError

T = TypeVar("T")

LARGEST_REPLY = 2**26
PASSING = {408, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""
LONGEST_WAIT = 60.0
"""Longest wait in seconds between two attempts, unless the server asks for one."""
LONGEST_ASKED = 600.0
"""Longest wait in seconds that a server may ask for; more is a daily limit or a mistake."""

log = logging.getLogger(__name__)


@dataclass
class Usage:
    """Requests to a server, and tokens as it counts them."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0

    def count(self, reply: Any) -> None:
        self.requests += 1
        usage = reply.get("usage") if isinstance(reply, dict) else None
        if isinstance(usage, dict):
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.response_tokens += int(usage.get("completion_tokens") or 0)

    def __add__(self, other: "Usage") -> "Usage":
        ours, theirs = asdict(self), asdict(other)
        return Usage(**{name: ours[name] + theirs[name] for name in ours})


class ServedModel:
    """Asks a server from synchronous code: `ask_all` takes the coroutines to await."""

    def __init__(self, init: ServerInit, tokenizer: Any, share: int = 1) -> None:
        """`share` processes ask at once and together stay within `parallel`."""
        self.init, self.tokenizer = init, tokenizer
        self.usage = Usage()
        self._share = share

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._runner.run(self._open())
        return self

    async def _open(self) -> None:
        key = os.environ.get(self.init.key)
        self._client = Client(self.init.url, key, self.init.timeout_seconds, LARGEST_REPLY)
        self._slots = asyncio.Semaphore(max(1, self.init.parallel // self._share))

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def get(self, path: str) -> Any:
        """Send one request; raises as `post` does."""
        return self._once(lambda: self._client.get(path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send one request, without a retry if nobody answers.

        Raises RefusedError, UnreadableReplyError, ConfigError or UnreachableError.
        """
        return self._once(lambda: self._client.post(path, body))

    def _once(self, ask: Callable[[], Coroutine[Any, Any, Any]], attempt: int = 0) -> Any:
        try:
            reply = self._runner.run(ask())
            self.usage.count(reply)
            return reply
        except RefusedError as error:
            if error.status in PASSING and attempt < self.init.retries:
                self.usage.retries += 1
                time.sleep(seconds_to_wait(attempt, error.retry_after))
                return self._once(ask, attempt + 1)
            if refused := self._known(error):
                raise refused from error
            raise
        except httpx.HTTPError as error:
            raise self._silent(error, 1) from error

    def ask_all(self, questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Await all of these, each of which may `ask`; the first failure cancels the others."""

        async def together() -> list[T]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(question) for question in questions]
            return [task.result() for task in tasks]

        try:
            return self._runner.run(together())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def ask(
        self, path: str, body: dict[str, Any], read: Callable[[Any], T], example: str
    ) -> T:
        """Ask until `read` can read a reply or there is no hope of one.

        Raises UnreachableError, SourceError or ConfigError, which name the server, and the example
        if it may be at fault.
        """
        for attempt in range(self.init.retries + 1):
            wait = seconds_to_wait(attempt, None)
            try:
                async with self._slots:
                    reply = await self._client.post(path, body)
                self.usage.count(reply)
                return read(reply)
            except (KeyError, TypeError, IndexError, ValueError, UnreadableReplyError) as error:
                failed: PipelineError = SourceError(
                    f"{self.init.url}, example {example}: the reply's form differs from the one "
                    f"checked at the start ({type(error).__name__}: {error})"
                )
            except RefusedError as error:
                failed = self._known(error) or SourceError(
                    f"{self.init.url} refuses example {example} ({error}): {error.reason}"
                )
                if error.status not in PASSING:
                    raise failed from error
                wait = seconds_to_wait(attempt, error.retry_after)
            except httpx.HTTPError as error:
                failed = self._silent(error, attempt + 1)
            if attempt < self.init.retries:
                self.usage.retries += 1
                await asyncio.sleep(wait)
        raise failed

    def _known(self, error: RefusedError) -> PipelineError | None:
        """Return the error for a refusal whose cause is known, without the server's words."""
        if error.status in (401, 403):
            variable = f"the environment variable {self.init.key}"
            if os.environ.get(self.init.key):
                return ConfigError(f"{self.init.url} refuses the key in {variable} ({error})")
            return ConfigError(f"{self.init.url} asks for a key; set {variable} ({error})")
        if error.status == 404 and self.init.model in error.reason:
            return ConfigError(f"model: {self.init.url} has no {self.init.model!r} ({error})")
        if error.status in PASSING:
            return UnreachableError(f"{self.init.url} is too busy: {error}; run it again later")
        return None

    def _silent(self, error: httpx.HTTPError, attempts: int) -> UnreachableError:
        times = f" in {attempts} attempts" if attempts > 1 else ""
        return UnreachableError(
            f"{self.init.url} did not answer{times} ({type(error).__name__}: {error}); start it "
            "or correct its url. All but the last few answers are kept"
        )


def seconds_to_wait(attempt: int, retry_after: float | None) -> float:
    """Return the seconds to wait: what the server asks for, else exponential with jitter."""
    if retry_after is not None:
        return min(LONGEST_ASKED, retry_after)
    return min(LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1)
