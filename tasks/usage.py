"""Count what a stage asks of a server, shard by shard, in its logs."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from firstkd.models.init.server import ServerInit
from firstkd.openai.teacher import ServedModel, Usage
from tasks.costs import USAGE, asking_cost


class UsageLog:
    """What a stage has asked for, in this run and in interrupted ones before it."""

    def __init__(self, logs: Path, partial: Path, init: ServerInit) -> None:
        """`partial` keeps what was received; if there is nothing yet, counting starts over."""
        self._logs, self._price = logs, init.price
        logs.mkdir(parents=True, exist_ok=True)
        if not partial.exists():
            (logs / USAGE).unlink(missing_ok=True)

    def adding(self, served: ServedModel) -> Callable[[], None]:
        """Return a function that logs everything asked since its last call."""

        def add() -> None:
            line: dict[str, float] = {**vars(served.usage)}
            if self._price is not None:
                prompt, response = served.usage.prompt_tokens, served.usage.response_tokens
                cost = self._price.prompt * prompt + self._price.response * response
                line["cost"] = cost / 1e6
            served.usage = Usage()
            with (self._logs / USAGE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        return add

    def in_words(self) -> str:
        total = Counter(asking_cost(self._logs))
        words = (
            f"{total['requests']:,} requests and {total['retries']:,} retries, "
            f"{total['prompt_tokens']:,} prompt tokens and {total['response_tokens']:,} response "
            "tokens"
        )
        return f"{words}, which cost {total['cost']:,.2f}" if "cost" in total else words
