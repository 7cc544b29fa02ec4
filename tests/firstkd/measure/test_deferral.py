"""The cascade against a plain count, question by question."""

import numpy as np
import pytest

from firstkd.measure.deferral import LOSS, Deferral


@pytest.fixture
def pair():
    draw = np.random.default_rng(0)
    confidence = np.round(draw.random(300), 2)  # with ties
    student = draw.random(300) < 0.2 + 0.7 * confidence
    return Deferral(confidence, student, draw.random(300) < 0.8)


def test_the_curve_is_what_counting_gives(pair):
    shares, accuracies = (found[0] for found in pair.curve())
    assert (shares[0], shares[-1]) == (0, 1)
    assert accuracies[0] == pair.teacher_right.mean()
    assert accuracies[-1] == pytest.approx(pair.student_right.mean())
    thresholds = np.unique(pair.confidence)[::-1]
    for threshold, share, accuracy in zip(thresholds, shares[1:], accuracies[1:], strict=True):
        keeps = pair.confidence >= threshold
        answers = np.where(keeps, pair.student_right, pair.teacher_right)
        assert (share, accuracy) == pytest.approx((keeps.mean(), answers.mean()))


def test_drawn_questions_count_as_often_as_they_are_drawn(pair):
    chosen = np.random.default_rng(1).integers(300, size=300)
    counts = np.bincount(chosen, minlength=300)[None].astype(float)
    drawn = Deferral(
        pair.confidence[chosen], pair.student_right[chosen], pair.teacher_right[chosen]
    )
    (shares,), (accuracies,) = pair.curve(counts)
    (expected,), (expected_accuracies,) = drawn.curve()
    assert np.interp(expected, shares, accuracies) == pytest.approx(expected_accuracies)


def test_the_headline_is_the_largest_share_that_costs_a_point_at_most(pair):
    shares, accuracies = (found[0] for found in pair.curve())
    enough = shares[accuracies >= pair.teacher_right.mean() - LOSS - 1e-9]
    found = pair.kept_share(samples=200, seed=0)
    assert found.value == enough.max() and found.low <= found.value <= found.high
    hopeless = Deferral(pair.confidence, np.zeros(300, dtype=bool), np.ones(300, dtype=bool))
    assert hopeless.kept_share(100, 0).value < 0.02
    assert Deferral(pair.confidence, pair.teacher_right, pair.teacher_right).kept_share(
        100, 0
    ).value == pytest.approx(1)


def test_questions_on_one_passage_are_drawn_together(pair):
    """300 copies of 30 questions say no more than the 30: one group of ten is one draw."""
    parts = (pair.confidence, pair.student_right, pair.teacher_right)
    few = Deferral(*(part[:30] for part in parts))
    grouped = Deferral(*(part[:30].repeat(10) for part in parts), np.arange(30).repeat(10))
    assert grouped.accuracy_at(0.5, 200, seed=0) == pytest.approx(few.accuracy_at(0.5, 200, seed=0))
    alone = Deferral(*(part[:30].repeat(10) for part in parts)).accuracy_at(0.5, 200, seed=0)
    found = grouped.accuracy_at(0.5, 200, seed=0)
    assert found.high - found.low > 2 * (alone.high - alone.low)


def test_chance_and_oracle_enclose_what_a_useful_confidence_does(pair):
    for kept in (0.25, 0.5, 0.75):
        found = pair.accuracy_at(kept, samples=200, seed=0)
        assert pair.chance(kept) < found.value < pair.oracle(kept)
        assert found.low < found.value < found.high
    ends = pair.teacher_right.mean(), pair.student_right.mean()
    for curve in (pair.chance, pair.oracle):
        assert (curve(0.0), curve(1.0)) == pytest.approx(ends)
    gains = (pair.teacher_right & ~pair.student_right).sum()
    best = (pair.teacher_right | pair.student_right).mean()
    assert pair.oracle(1 - gains / 300) == pytest.approx(best)


def test_a_confidence_that_says_nothing_defers_like_chance():
    draw = np.random.default_rng(2)
    pair = Deferral(draw.random(20_000), draw.random(20_000) < 0.4, draw.random(20_000) < 0.8)
    assert pair.accuracy_at(0.5, 100, 0).value == pytest.approx(pair.chance(0.5), abs=0.01)
