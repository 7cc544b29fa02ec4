"""Have a chat model answer in its own words, and read its most probable tokens along the way."""

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any, NamedTuple


class Said(NamedTuple):
    """A token of an answer, by its text."""

    text: str
    logprob: float
    top: dict[str, float]
    """Log-probabilities of the most probable tokens in its place, except any that share a text."""


class Answer(NamedTuple):
    text: str
    tokens: list[Said]
    """Those of the text and, on some servers, the one that ends it."""
    is_whole: bool
    """Whether it came to its end rather than being cut off."""


def answer_request(
    model: str, messages: Sequence[Mapping[str, str]], max_tokens: int, top: int
) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [*messages],
        "max_tokens": max_tokens,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": top,
    }


def answer_in(reply: Any) -> Answer:
    """Return an answer without the white space around it.

    Raises KeyError, IndexError, TypeError or ValueError for a reply without log-probabilities.
    """
    choice = reply["choices"][0]
    said = [
        Said(
            each["token"],
            float(each["logprob"]),
            _by_text([(top["token"], float(top["logprob"])) for top in each["top_logprobs"]]),
        )
        for each in choice["logprobs"]["content"]
    ]
    tokens = [*dropwhile(lambda token: not token.text.strip(), said)]
    is_whole = choice["finish_reason"] == "stop"
    return Answer((choice["message"]["content"] or "").strip(), tokens, is_whole)


def _by_text(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    texts = [text for text, _ in pairs]
    return {text: value for text, value in pairs if texts.count(text) == 1}
