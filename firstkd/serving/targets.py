"""Who answers what a student passes on: a server elsewhere, or another registered model."""

import json
import math
import os
import re
import string
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from firstkd.data.examples import Example
from firstkd.serving.batching import Batcher
from firstkd.serving.settings import OpenAISettings, RegisteredSettings

KEY = "FIRSTKD_ESCALATION_KEY"
LARGEST_REPLY = 2**20
TOP = 20
"""Log-probabilities that OpenAI's interface gives at most."""


class EscalationError(Exception):
    """No answer came of it; the text says why, in a word or two, without the question."""


@dataclass(frozen=True)
class Given:
    by: str
    index: int
    """Index of the choice."""
    confidence: float | None
    """What it says of itself; None if it does not say."""


class Target(Protocol):
    async def ask(self, example: Example) -> Given:
        """Raises EscalationError, or whatever the connection does."""

    async def close(self) -> None: ...


@dataclass
class Registered:
    """Another registered model in this process."""

    batcher: Batcher

    async def ask(self, example: Example) -> Given:
        served, [answer] = await self.batcher.answer([example])
        return Given(served.name, answer.answer_index, answer.confidence)

    async def close(self) -> None:
        pass


@dataclass
class OpenAI:
    """A server with OpenAI's chat completions, asked for one letter."""

    settings: OpenAISettings
    _client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=self.settings.timeout_seconds, follow_redirects=False
        )

    async def ask(self, example: Example) -> Given:
        choices = example.choices or ()
        letters = string.ascii_uppercase[: len(choices)]
        if len(choices) > len(letters):
            raise EscalationError("more choices than letters")
        reply = await self._post(_request(self.settings.model, example.prompt, choices))
        try:
            [first, *_] = reply["choices"]
            text = first["message"]["content"]
            found = re.match(r"\W*([A-Z])\b", text)
            index = letters.index(found[1]) if found else -1
        except (KeyError, TypeError, ValueError):
            index = -1
        if index < 0:
            raise EscalationError("no letter in the reply")
        return Given(self.settings.model, index, _confidence(first, letters, index))

    async def _post(self, request: dict[str, Any]) -> Any:
        url = f"{self.settings.url.rstrip('/')}/chat/completions"
        async with self._client.stream("POST", url, json=request) as response:
            if response.status_code != 200:
                raise EscalationError(f"status {response.status_code}")
            body = b""
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LARGEST_REPLY:
                    raise EscalationError("a reply too large")
        try:
            return json.loads(body)
        except ValueError as error:
            raise EscalationError("a reply that is not JSON") from error

    async def close(self) -> None:
        await self._client.aclose()


def _request(model: str, question: str, choices: tuple[str, ...]) -> dict[str, Any]:
    options = "".join(
        f"\n{letter}. {choice}"
        for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
    )
    text = f"{question}{options}\nAnswer with the letter of the right answer alone."
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,  # some tokenizers spend one on a space
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }


def _confidence(first: dict[str, Any], letters: str, index: int) -> float | None:
    """Return the letter's share of the letters' probability, where the server gives it.

    At the token where the reply says its letter. It is as calibrated as that model is.
    """
    try:
        for token in first["logprobs"]["content"]:
            if token["token"].strip() == letters[index]:
                mass = dict.fromkeys(letters, 0.0)
                for each in token["top_logprobs"]:
                    if (letter := each["token"].strip()) in mass:
                        mass[letter] += math.exp(each["logprob"])
                return mass[letters[index]] / sum(mass.values())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError):
        return None  # many servers give none, or in another shape
    return None


def target_of(settings: OpenAISettings | RegisteredSettings, registered: Batcher | None) -> Target:
    """Return the target of the settings; `registered` is the loaded model they name, if they do."""
    if isinstance(settings, OpenAISettings):
        return OpenAI(settings)
    assert registered is not None
    return Registered(registered)
