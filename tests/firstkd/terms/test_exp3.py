"""The bandit between terms, against Exp3 written out."""

import json
import math

import numpy as np
import pytest
import torch

from firstkd.terms.bandit_settings import Bandit
from firstkd.terms.exp3 import Exp3, lowest_nll, reward

RIGHT = torch.tensor([0, 1, 0])


def answers(sharpness):
    """Scores whose NLL at its own temperature falls with the sharpness of the right answers."""
    wrong = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.3, 0.0]], dtype=torch.float64)
    return wrong + sharpness * torch.nn.functional.one_hot(RIGHT, 2)


def bandit(rounds=20, seed=3):
    return Exp3(Bandit(arms=("a", "b", "c"), rounds=rounds), seed)


def nll_by_grid(scores):
    temperatures = np.geomspace(0.01, 100, 20001)
    scores = scores.numpy()[None] / temperatures[:, None, None]
    scores = scores - scores.max(-1, keepdims=True)
    logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return float(-logprobs[:, range(3), RIGHT.tolist()].mean(-1).max())


def test_the_nll_is_that_at_the_best_temperature():
    for sharpness in (0.1, 0.3, 0.6):
        found = lowest_nll(answers(sharpness), RIGHT)
        assert found == pytest.approx(nll_by_grid(answers(sharpness)), abs=1e-6)
        assert found == pytest.approx(lowest_nll(answers(sharpness) * 7, RIGHT), abs=1e-6)


def test_a_reward_is_the_place_among_the_falls_so_far():
    assert reward([0.3]) == reward([0.1, 0.1]) == 0.5
    falls = [0.5, 0.1, 0.4, 0.0, 0.2]
    low, high = 0.08, 0.42  # a fifth of the way from the lowest but one, …
    assert reward(falls) == pytest.approx((0.2 - low) / (high - low))
    assert reward([*falls, 9.0]) == 1.0 and reward([*falls, -9.0]) == 0.0


def test_probabilities_are_those_of_exp3():
    found, estimates, falls, before = bandit(), np.zeros(3), [], None
    drawn, probabilities = 0, np.full(3, 1 / 3)
    for number in range(15):
        scores = answers(0.1 + 0.02 * ((7 * number) % 15))
        if before is not None:
            falls.append(before - lowest_nll(scores, RIGHT))
            low, high = np.quantile(falls, [0.2, 0.8])
            gain = min(max((falls[-1] - low) / (high - low), 0), 1) if high > low else 0.5
            estimates[drawn] += (1 - gain) / probabilities[drawn]
        before = lowest_nll(scores, RIGHT)
        weights = np.exp(-math.sqrt(2 * math.log(3) / (20 * 3)) * estimates)
        probabilities = weights / weights.sum()
        found.adapt(scores, RIGHT)
        drawn = found.drawn
        assert [*found.shown] == ["a_probability", "b_probability", "c_probability"]
        np.testing.assert_allclose([*found.shown.values()], probabilities, rtol=0, atol=1e-9)


def test_the_arm_after_which_the_nll_falls_comes_to_be_drawn_most():
    drawn = []
    for seed in range(10):
        found, sharpness = bandit(rounds=200, seed=seed), 0.0
        for _ in range(200):
            found.adapt(answers(sharpness), RIGHT)
            drawn.append(found.drawn)
            sharpness += 0.004 if found.drawn == 1 else 0.001
    assert drawn.count(1) > 0.5 * len(drawn)


def test_only_the_drawn_arm_counts_and_other_terms_keep_their_weights():
    found = bandit()
    found.adapt(answers(0.2), RIGHT)
    weights = found.weighed({"a": 1.0, "gold": 0.5, "b": 2.0, "c": 3.0})
    assert weights.pop("gold") == 0.5
    expected = [0.0] * 3
    expected[found.drawn] = found.drawn + 1.0
    assert [weights[arm] for arm in "abc"] == expected


def test_restored_it_draws_the_same():
    found, again = bandit(), bandit()
    for number in range(5):
        found.adapt(answers(0.1 * (number % 3)), RIGHT)
    again.restore(json.loads(json.dumps(found.state())))
    for number in range(5):
        for each in (found, again):
            each.adapt(answers(0.1 * number), RIGHT)
        assert (again.drawn, again.shown) == (found.drawn, found.shown)
