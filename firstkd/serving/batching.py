"""One model for many callers: whatever waits when it becomes free is its next batch.

Whoever has just got an answer often asks again at once. So the next batch waits for as many
questions as were answered, but only for a small share of what that took: it costs next to nothing,
and without it clients fall into two halves that take turns, each with a batch half as large.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from firstkd.answering import Answer, Answerer
from firstkd.data.examples import Example

PATIENCE = 0.05
"""Share of the last batch's time that the next one waits, at most."""


class OverloadedError(Exception):
    """More questions wait already than may."""


@dataclass(frozen=True)
class Served:
    """A registered version that is loaded."""

    name: str
    """E.g. `firstkd-student v3`."""
    answerer: Answerer


@dataclass
class _Waiting:
    examples: Sequence[Example]
    answered: "asyncio.Future[tuple[Served, list[Answer]]]"


@dataclass
class Batcher:
    """Answers requests in order, several at a time, in a separate thread.

    `served` may be replaced at any time: the next batch is answered by the new one. A batch has
    whole requests alone, so that each is answered by one version.
    """

    served: Served
    largest: int
    """Questions of a batch."""
    waiting: int
    """Questions that may wait."""
    on_batch: Callable[[int], None] = lambda _: None
    """Called with the number of questions of each batch."""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _last: tuple[int, float] = (0, 0.0)
    """Questions and seconds of the last batch."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "student"))

    @property
    def size(self) -> int:
        """Questions that wait, and somebody for them."""
        return sum(len(each.examples) for each in self._queue if not each.answered.done())

    async def answer(self, examples: Sequence[Example]) -> tuple[Served, list[Answer]]:
        """Return the answers and who gave them.

        Raises OverloadedError, and DataValidationError for a question the model has no room for.
        """
        if self.size + len(examples) > self.waiting:
            raise OverloadedError
        answered: asyncio.Future[tuple[Served, list[Answer]]] = asyncio.Future()
        self._queue.append(_Waiting(examples, answered))
        self._arrived.set()
        return await answered

    async def work(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._arrived.wait()
            await self._gather()
            batch = self._next()
            if not batch:
                self._arrived.clear()
                self._last = (0, 0.0)  # nobody comes back: the next one is answered at once
                continue
            count, began = sum(len(each.examples) for each in batch), time.monotonic()
            self.on_batch(count)
            await self._answer(batch)
            self._last = (count, time.monotonic() - began)

    async def _gather(self) -> None:
        """Let those come back that were just answered."""
        count, seconds = self._last
        wanted = min(self.largest, self.size + count)
        deadline = time.monotonic() + PATIENCE * seconds
        while self.size < wanted and time.monotonic() < deadline:
            await asyncio.sleep(PATIENCE * seconds / 50)

    def _next(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = self.largest
        while self._queue and (not batch or len(self._queue[0].examples) <= room):
            first = self._queue.popleft()
            if not first.answered.done():  # whoever asked may be gone
                batch.append(first)
                room -= len(first.examples)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        served = self.served
        examples = [example for each in batch for example in each.examples]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._thread, served.answerer.answer_examples, examples
            )
        except Exception as error:  # whoever asked gets the error
            await self._failed(batch, error)
            return
        for each in batch:
            if not each.answered.done():
                each.answered.set_result((served, found[: len(each.examples)]))
            found = found[len(each.examples) :]

    async def _failed(self, batch: list[_Waiting], error: Exception) -> None:
        """Answer each request by itself, so that only the one that fails gets the error."""
        if len(batch) > 1:
            for each in batch:
                await self._answer([each])
        elif not batch[0].answered.done():
            batch[0].answered.set_exception(error)
