"""One model for many callers: whatever is waiting when it becomes free is its next batch.

Clients that have just been answered often ask again at once. So the next batch waits for as many
questions as were answered, but only for a small share of the time that took. This costs next to
nothing; without it, clients split into two halves that take turns, with batches half as large.
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
"""Longest wait before a batch, as a share of the time that the last one took."""


class OverloadedError(Exception):
    """Too many questions are already waiting."""


@dataclass(frozen=True)
class Served:
    """A registered version, loaded."""

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

    `served` may be replaced at any time: the new one answers the next batch. A batch contains only
    whole requests, so that a single version answers each.
    """

    served: Served
    largest: int
    """Maximum questions in a batch."""
    waiting: int
    """Maximum questions waiting."""
    on_batch: Callable[[int], None] = lambda _: None
    """Called with the number of questions of each batch."""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _last: tuple[int, float] = (0, 0.0)
    """The last batch's questions, and the seconds it took."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "student"))

    @property
    def size(self) -> int:
        """Waiting questions whose caller has not gone."""
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
                self._last = (0, 0.0)  # nobody came back: answer the next one at once
                continue
            count, began = sum(len(each.examples) for each in batch), time.monotonic()
            self.on_batch(count)
            await self._answer(batch)
            self._last = (count, time.monotonic() - began)

    async def _gather(self) -> None:
        """Wait briefly for the clients just answered to come back."""
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
