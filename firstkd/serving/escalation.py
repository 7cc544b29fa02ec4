"""Passing a question on without being dragged down by whoever should answer it."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from firstkd.data.examples import Example
from firstkd.openai.client import RefusedError, UnreadableReplyError
from firstkd.serving.targets import CannotAskError, EscalationError, Given, Target

FAILURES = 5
"""Failures in a row after which nothing is passed on for a while."""
PAUSE_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass
class Escalation:
    """A target behind a time-out, a limit on concurrent questions, and a circuit breaker.

    After `failures` failures in a row the circuit is open: questions are not passed on. After
    `pause_seconds` one is, as a trial: it closes the circuit, or opens it for as long again.
    """

    target: Target
    timeout_seconds: float
    parallel: int
    failures: int = FAILURES
    pause_seconds: float = PAUSE_SECONDS
    clock: Callable[[], float] = time.monotonic
    _under_way: int = 0
    _failed: int = 0
    _open_until: float = 0.0

    @property
    def is_open(self) -> bool:
        return self._failed >= self.failures and self.clock() < self._open_until

    async def ask(self, example: Example) -> Given:
        """Return the target's answer; raise EscalationError saying why there is none."""
        if self.is_open:
            raise EscalationError("circuit open")
        if self._under_way >= self.parallel:
            raise EscalationError("too many under way")
        if self._failed >= self.failures:  # this is the trial; others are refused until it ends
            self._open_until = self.clock() + self.pause_seconds
        self._under_way += 1
        try:
            async with asyncio.timeout(self.timeout_seconds):
                given = await self.target.ask(example)
        except CannotAskError:
            if self._failed >= self.failures:
                self._open_until = self.clock()  # the next question is the trial
            raise
        except Exception as error:
            reason = _reason(error)
            self._count_failure(reason)
            raise EscalationError(reason) from error
        finally:
            self._under_way -= 1
        self._failed = 0
        return given

    def _count_failure(self, reason: str) -> None:
        self._failed += 1
        if self._failed >= self.failures:
            self._open_until = self.clock() + self.pause_seconds
            log.warning(
                "escalation failed %d times in a row, most recently with: %s; nothing is "
                "passed on for %g s",
                self._failed,
                reason,
                self.pause_seconds,
            )


def _reason(error: Exception) -> str:
    if isinstance(error, EscalationError | RefusedError | UnreadableReplyError):
        return str(error)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "time-out"
    if isinstance(error, httpx.HTTPError):
        return "unreachable"
    return type(error).__name__
