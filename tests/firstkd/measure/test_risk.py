"""A threshold whose promise is kept, counted against a truth that is known."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from firstkd.measure.risk import best_coverage, interval, promise, upper_bound
from firstkd.serving.settings import PolicySettings

POLICY = PolicySettings(max_error=0.1, confidence=0.95)


def draw(generator, size, sharpness=1.7, centre=1.0):
    """Return confidences of five choices, and the probability of each to be right."""
    odds = generator.normal(centre, sharpness, size)
    right = 0.2 + 0.8 / (1 + np.exp(-odds))
    return right, right


def overconfident(generator, size):
    _, right = draw(generator, size)
    return right**0.2, right


def flat(generator, size):
    """Surer or less sure without any meaning, and right in 85 %."""
    return generator.random(size), np.full(size, 0.85)


def steps(generator, size):
    """Three confidences, so that most questions tie."""
    level = generator.integers(3, size=size)
    return np.array([0.3, 0.6, 0.9])[level], np.array([0.4, 0.8, 0.97])[level]


@pytest.mark.parametrize("wrong", [0, 1, 7, 50])
def test_the_bound_is_clopper_and_pearsons(wrong):
    [found] = upper_bound(np.array([wrong]), np.array([50]), 0.95)
    two_sided = binomtest(wrong, 50).proportion_ci(confidence_level=0.9, method="exact")
    assert found == pytest.approx(two_sided.high)
    exact = binomtest(wrong, 50).proportion_ci(method="exact")
    both = interval(wrong, 50)
    assert (both.low, both.high) == pytest.approx((exact.low, exact.high))
    assert interval(0, 0) == interval(0, 0) and interval(0, 0).high == 1


@pytest.mark.parametrize("population", [draw, overconfident, flat, steps])
@pytest.mark.parametrize(("size", "policy"), [(175, (0.2, 0.9)), (600, (0.1, 0.95))])
def test_the_promise_is_broken_no_more_often_than_it_says(population, size, policy):
    generator, kept = (
        np.random.default_rng(1),
        PolicySettings(max_error=policy[0], confidence=policy[1]),
    )
    confidence, right = population(generator, 20_000)
    trials, broken = 500, 0
    for _ in range(trials):
        chosen = generator.integers(len(right), size=size)
        correct = generator.random(size) < right[chosen]
        found = promise(confidence[chosen], correct, kept)
        answered = confidence >= found.abstain_below
        broken += bool(answered.any() and (1 - right[answered]).mean() > kept.max_error)
    # no more than chance makes of a rate of exactly 1 − confidence
    assert broken <= binom.ppf(0.999, trials, 1 - kept.confidence)


def test_a_promise_answers_much_of_what_could_be_answered():
    generator = np.random.default_rng(2)
    confidence, right = draw(generator, 20_000, centre=2.0)
    correct = generator.random(len(right)) < right
    best = best_coverage(confidence, correct, POLICY.max_error)
    found = [
        promise(confidence[part], correct[part], POLICY).coverage
        for part in generator.integers(len(right), size=(100, 600))
    ]
    assert 0.6 * best < np.mean(found) < best


def test_testing_stops_at_the_first_threshold_that_fails():
    """Even if looser ones would pass: their turn never comes."""
    correct = np.ones(400, dtype=bool)
    correct[:10] = False  # of which it is surest
    confidence = np.linspace(0.99, 0.2, 400)
    assert float(upper_bound(np.array([10]), np.array([400]), 0.95)[0]) < POLICY.max_error
    found = promise(confidence, correct, POLICY)
    assert found.threshold is None and found.coverage == 0 and found.abstain_below == np.inf
    assert "no threshold can promise" in str(found)


def test_the_threshold_is_the_loosest_of_the_sequence_that_passes():
    generator = np.random.default_rng(3)
    confidence, right = draw(generator, 600, centre=2.0)
    correct = generator.random(600) < right
    found = promise(confidence, correct, POLICY)
    order = np.argsort(-confidence)
    passing = []
    for answered in range(61, 601):  # with 61 answers two may be wrong: binom.cdf(2, 61, 0.1) < 5 %
        wrong = int((~correct[order[:answered]]).sum())
        if binom.cdf(wrong, answered, 0.1) > 0.05:
            break
        passing.append(answered)
    assert binom.cdf(2, 61, 0.1) <= 0.05 < binom.cdf(2, 60, 0.1)
    assert found.answered == passing[-1]
    assert found.threshold == confidence[order[passing[-1] - 1]]
    assert found.wrong == (~correct[order[: found.answered]]).sum()
    assert found.error_bound <= 0.1


def test_equal_confidences_stand_or_fall_together():
    correct = np.ones(200, dtype=bool)
    found = promise(np.full(200, 0.7), correct, POLICY)
    assert (found.threshold, found.coverage) == (0.7, 1.0)
    correct[:20] = False
    assert promise(np.full(200, 0.7), correct, POLICY).threshold is None


def test_few_questions_can_promise_little():
    correct = np.ones(28, dtype=bool)  # 0.9^28 = 0.052: with all right, 10 % wrong is still likely
    confidence = np.linspace(0.9, 0.5, 28)
    assert promise(confidence, correct, POLICY).threshold is None
    more = promise(np.append(confidence, 0.4), np.append(correct, True), POLICY)
    assert more.threshold == 0.4
