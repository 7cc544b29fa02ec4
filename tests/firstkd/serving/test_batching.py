"""How questions of many clients come together."""

import asyncio
import contextlib

from firstkd.serving.batching import Batcher
from tests.firstkd.serving.servers import CHOICES, QUESTION, served

CLIENTS, ROUNDS = 8, 12


def test_clients_that_ask_again_at_once_come_to_share_one_batch(tiny_model, tmp_path):
    """They start in two halves, the second while the first is being answered."""
    champion, sizes = served(tiny_model, tmp_path), list[int]()
    [example] = champion.answerer.examples([QUESTION], [CHOICES])

    async def asking() -> None:
        batcher = Batcher(champion, largest=64, waiting=64, on_batch=sizes.append)
        working = asyncio.create_task(batcher.work())

        async def client(late: bool) -> None:
            while late and not sizes:
                await asyncio.sleep(0)
            for _ in range(ROUNDS):
                served_by, [answer] = await batcher.answer([example])
                assert served_by is champion and answer.answer in CHOICES

        await asyncio.gather(*(client(late=n % 2 == 1) for n in range(CLIENTS)))
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    asyncio.run(asking())
    assert sizes[0] == CLIENTS // 2 and sum(sizes) == CLIENTS * ROUNDS
    assert sizes[1:ROUNDS] == [CLIENTS] * (ROUNDS - 1)
