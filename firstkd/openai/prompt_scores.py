"""Log-probabilities of a given text's tokens, from servers that score prompts.

There are two ways to ask. vLLM takes `prompt_logprobs` and answers by token id. vLLM, SGLang and
others `echo` the prompt with log-probabilities, as OpenAI's first completions did, and name tokens
by their text. Prompts are sent as ids, so that the server scores exactly the intended tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from firstkd.openai.client import UnreadableReplyError

Way = Literal["prompt_logprobs", "echo"]
WAYS: tuple[Way, ...] = ("prompt_logprobs", "echo")
"""In order of preference: by token id first."""

Scored = tuple[float, dict[int, float]]
"""A token's log-probability, and those of the most probable ones in its place, by id."""


def score_request(model: str, prompts: Sequence[Sequence[int]], way: Way, top: int) -> Any:
    """Build a request for the scores of each prompt's tokens and the `top` most probable ones."""
    request = {
        "model": model,
        "prompt": [[*prompt] for prompt in prompts],
        "max_tokens": 1,  # not every server accepts 0
        "temperature": 0,
    }
    if way == "prompt_logprobs":
        return request | {"prompt_logprobs": top}
    return request | {"echo": True, "logprobs": top}


def scores_in(
    reply: Any, prompts: Sequence[Sequence[int]], way: Way, ids: Mapping[str, int]
) -> list[list[Scored]]:
    """Return the scores of each prompt's tokens except the first, which nothing precedes.

    `ids` maps texts that only one token has to its id; other tokens are left out of the most
    probable ones. Raises UnreadableReplyError unless every token has a score.
    """
    read = _by_id if way == "prompt_logprobs" else _by_text
    try:
        found = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
        pairs = zip(found, prompts, strict=True)
        scores = [read(choice, prompt, ids) for choice, prompt in pairs]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnreadableReplyError("a reply without a score for each token") from error
    return scores


def text_of(reply: Any, prompt: Sequence[int], way: Way) -> str | None:
    """Return the text that the server reads the one prompt's ids as, from the second on.

    None if it does not say.
    """
    choice = reply["choices"][0]
    if way == "prompt_logprobs":
        places = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
        pieces = [place[str(token)].get("decoded_token") for token, place in places]
    else:
        pieces = (choice["logprobs"].get("tokens") or [None])[1 : len(prompt)] or [None]
    return None if None in pieces else "".join(pieces)


def _by_id(choice: Any, prompt: Sequence[int], ids: Mapping[str, int]) -> list[Scored]:
    scored = []
    for token, place in zip(prompt, choice["prompt_logprobs"], strict=True):
        if place is not None:
            top = {int(i): float(each["logprob"]) for i, each in place.items()}
            scored.append((top[token], top))
    return _complete(scored, prompt)


def _by_text(choice: Any, prompt: Sequence[int], ids: Mapping[str, int]) -> list[Scored]:
    logprobs, size = choice["logprobs"], len(prompt)
    # the one generated token comes after the prompt
    own = [float(value) for value in logprobs["token_logprobs"][1:size]]
    tops = (logprobs.get("top_logprobs") or [None] * size)[1:size]
    scored = []
    for token, value, top in zip(prompt[1:], own, tops, strict=True):
        known = {ids[text]: float(p) for text, p in (top or {}).items() if text in ids}
        scored.append((value, {**known, token: value}))
    return _complete(scored, prompt)


def _complete(scored: list[Scored], prompt: Sequence[int]) -> list[Scored]:
    if len(scored) != len(prompt) - 1:
        raise ValueError(f"{len(scored)} scores for {len(prompt)} tokens")
    return scored
