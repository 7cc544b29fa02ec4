"""Who answers what a student passes on: a server elsewhere, or another registered model."""

import os
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from firstkd.data.examples import Example
from firstkd.data.rendering import letter_question
from firstkd.data.text import clean
from firstkd.errors import ConfigError, DataValidationError
from firstkd.openai.client import Client
from firstkd.openai.letters import letter_masses, letter_request
from firstkd.serving.batching import Batcher
from firstkd.serving.settings import OpenAISettings, RegisteredSettings

KEY = "FIRSTKD_ESCALATION_KEY"
LARGEST_REPLY = 2**20
LONGEST_ANSWER = 512
"""Maximum tokens of an open-text answer."""


class EscalationError(Exception):
    """There is no answer; the text says why in a word or two, without the question."""


class CannotAskError(EscalationError):
    """The target cannot be asked this question, which says nothing about its health."""


@dataclass(frozen=True)
class Given:
    by: str
    answer: str
    confidence: float | None
    """As it reports; None if it reports none."""


class Target(Protocol):
    async def ask(self, example: Example) -> Given:
        """Return its answer; raise EscalationError, or whatever the connection raises."""

    async def close(self) -> None: ...


@dataclass
class Registered:
    """Another registered model in this process."""

    batcher: Batcher

    async def ask(self, example: Example) -> Given:
        try:
            served, [answer] = await self.batcher.answer([example])
        except DataValidationError as error:
            raise CannotAskError("not a question for this model") from error
        return Given(served.name, answer.answer, answer.confidence)

    async def close(self) -> None:
        pass


@dataclass
class OpenAI:
    """A server with OpenAI's chat completions, asked for one letter or an open-text answer."""

    settings: OpenAISettings
    _client: Client = field(init=False)

    def __post_init__(self) -> None:
        seconds = self.settings.timeout_seconds
        self._client = Client(self.settings.url, os.environ.get(KEY), seconds, LARGEST_REPLY)

    async def ask(self, example: Example) -> Given:
        if example.choices is None:
            return await self._own_words(example.prompt)
        try:
            question, letters = letter_question(example)
        except ConfigError as error:
            raise CannotAskError("more choices than letters") from error
        messages = [{"role": "user", "content": question}]
        request = letter_request(self.settings.model, messages)
        reply = await self._client.post("chat/completions", request)
        try:
            [first, *_] = reply["choices"]
            text = first["message"]["content"]
            found = re.match(r"\W*([A-Z])\b", text)
            index = letters.index(found[1]) if found else -1
        except (KeyError, TypeError, ValueError):
            index = -1
        if index < 0:
            raise EscalationError("no letter in the reply")
        confidence = _confidence(first, letters, index)
        return Given(self.settings.model, example.choices[index], confidence)

    async def _own_words(self, prompt: str) -> Given:
        request = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": LONGEST_ANSWER,
            "temperature": 0,
        }
        reply = await self._client.post("chat/completions", request)
        try:
            [first, *_] = reply["choices"]
            text = clean(first["message"]["content"])
        except (KeyError, TypeError, ValueError, AttributeError):
            text = ""
        if not text:
            raise EscalationError("no answer in the reply")
        return Given(self.settings.model, text, None)

    async def close(self) -> None:
        await self._client.close()


def _confidence(first: dict[str, Any], letters: list[str], index: int) -> float | None:
    """Return the letter's share of all letters' probability, if the server reports it.

    It is read at the token where the reply says its letter, and as calibrated as that model is.
    """
    try:
        for token in first["logprobs"]["content"]:
            if token["token"].strip() == letters[index]:
                mass = letter_masses(token["top_logprobs"], letters)
                return mass[letters[index]] / sum(mass.values())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError):
        return None  # many servers report none, or in another form
    return None


def target_of(settings: OpenAISettings | RegisteredSettings, registered: Batcher | None) -> Target:
    """Return the settings' target; `registered` is the loaded model, if they name one."""
    if isinstance(settings, OpenAISettings):
        return OpenAI(settings)
    assert registered is not None
    return Registered(registered)
