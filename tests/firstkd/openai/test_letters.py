"""Letters' probabilities from the most probable tokens of a reply."""

import math
from typing import Any

import pytest

from firstkd.openai.letters import letter_logprobs


def reply(*places: dict[str, float]) -> Any:
    """A reply that has these probabilities, place by place."""
    content = [
        {
            "token": max(place, key=place.__getitem__),
            "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in place.items()],
        }
        for place in places
    ]
    return {"choices": [{"logprobs": {"content": content}}]}


def probabilities(answer: Any, letters: str) -> list[float]:
    return [math.exp(value) for value in letter_logprobs(answer, [*letters])[0]]


def test_all_tokens_that_spell_a_letter_count():
    found, held = letter_logprobs(reply({"A": 0.3, " A": 0.1, "B": 0.2, "the": 0.1}), [*"AB"])
    assert [math.exp(value) for value in found] == pytest.approx([0.4 / 0.6, 0.2 / 0.6])
    assert held == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("listed", "bound"),
    [
        ({"A": 0.6, "the": 0.05}, 0.05),  # no more than the least that is listed
        ({"A": 0.7, "the": 0.29}, 0.01),  # nor than what they leave
        ({"A": 1.0}, 1e-9),  # and never 0
    ],
)
def test_a_letter_that_is_missing_gets_what_it_can_have_at_most(listed, bound):
    found = probabilities(reply(listed), "AB")
    assert found == pytest.approx(
        [listed["A"] / (listed["A"] + bound), bound / (listed["A"] + bound)]
    )


def test_white_space_before_the_letter_is_passed_over():
    assert probabilities(
        reply({" ": 0.9, "A": 0.1}, {"B": 0.75, "A": 0.25}), "AB"
    ) == pytest.approx([0.25, 0.75])


def test_a_probability_that_a_server_cuts_off_is_not_0():
    answer = reply({"A": 0.9})
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    top.append({"token": "B", "logprob": -9999.0})
    assert letter_logprobs(answer, [*"AB"])[0][1] == pytest.approx(math.log(1e-9 / 0.9))


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": "A"}}]},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": []}}]},
        {"choices": []},
    ],
)
def test_a_reply_without_log_probabilities_is_none(answer):
    with pytest.raises((KeyError, TypeError, IndexError)):
        letter_logprobs(answer, ["A"])
