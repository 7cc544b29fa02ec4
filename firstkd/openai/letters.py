"""Have a chat model answer a question with one letter, and read the letters' probabilities."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TOP = 20
"""The most log-probabilities per token that OpenAI's interface gives."""
LEAST = 1e-9
"""The lowest probability; below it, servers write −9999 or nothing."""


def letter_request(model: str, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [*messages],
        "max_tokens": 4,  # some tokenizers spend one on a space
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }


def letter_masses(top: Sequence[Mapping[str, Any]], letters: Sequence[str]) -> dict[str, float]:
    """Return each letter's probability, summed over all tokens that spell it; 0 if none does.

    `top` are the most probable tokens at one position.
    """
    mass = dict.fromkeys(letters, 0.0)
    for each in top:
        if (letter := each["token"].strip()) in mass:
            mass[letter] += math.exp(each["logprob"])
    return mass


def letter_logprobs(reply: Any, letters: Sequence[str]) -> tuple[list[float], float]:
    """Return the letters' log-probabilities, and their total probability among all tokens.

    Both are for the first token that is not just white space. A letter that is not among the most
    probable tokens gets the most it can have: the least of theirs, or what they leave if that is
    less.
    Raises KeyError, IndexError or TypeError for a reply without log-probabilities.
    """
    tokens = reply["choices"][0]["logprobs"]["content"]
    first = next((token for token in tokens if token["token"].strip()), tokens[0])
    listed = [math.exp(each["logprob"]) for each in first["top_logprobs"]]
    bound = max(LEAST, min(min(listed), 1 - math.fsum(listed)))
    masses = letter_masses(first["top_logprobs"], letters)
    known = [max(mass, LEAST) if mass else bound for mass in masses.values()]
    total = math.fsum(known)
    return [math.log(mass / total) for mass in known], math.fsum(masses.values())
