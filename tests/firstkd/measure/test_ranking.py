import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from firstkd.measure.ranking import Ranking, coverage_curve

METHODS = ("auroc", "aurc", "excess_aurc")


@pytest.fixture(params=["distinct", "ties"])
def decisions(request):
    draw = np.random.default_rng(0)
    confidence = draw.random(201)
    if request.param == "ties":
        confidence = np.round(confidence, 1)
    return confidence, draw.random(201) < confidence


def aurc_by_loop(confidence, correct):
    """The mean risk over all coverages; decisions of equal confidence share their risk."""
    risks, wrong = [], 0.0
    error_rate = {c: np.mean(~correct[confidence == c]) for c in np.unique(confidence)}
    for answered, c in enumerate(sorted(confidence, reverse=True), 1):
        wrong += error_rate[c]
        risks.append(wrong / answered)
    return np.mean(risks)


def test_auroc_agrees_with_scikit_learn(decisions):
    confidence, correct = decisions
    expected = roc_auc_score(correct, confidence)
    assert Ranking.of(confidence, correct).auroc()[0] == pytest.approx(expected, abs=1e-12)


def test_aurc_agrees_with_a_loop(decisions):
    ranking = Ranking.of(*decisions)
    assert ranking.aurc()[0] == pytest.approx(aurc_by_loop(*decisions), abs=1e-12)


def test_excess_aurc_is_what_is_lost_to_the_best_order(decisions):
    _, correct = decisions
    best = aurc_by_loop(np.where(correct, 1.0, 0.0) + np.linspace(0, 0.5, len(correct)), correct)
    ranking = Ranking.of(*decisions)
    assert ranking.excess_aurc()[0] == pytest.approx(ranking.aurc()[0] - best, abs=1e-12)
    perfect = Ranking.of(correct.astype(float), correct)
    assert perfect.auroc()[0] == 1


def test_the_best_order_has_no_excess():
    correct = np.arange(100) < 60
    assert Ranking.of(-np.arange(100.0), correct).excess_aurc()[0] == pytest.approx(0, abs=1e-12)


def test_a_model_that_is_equally_sure_of_everything_knows_nothing():
    correct = np.arange(100) % 5 == 0
    ranking = Ranking.of(np.full(100, 0.7), correct)
    assert ranking.auroc()[0] == 0.5
    assert ranking.aurc()[0] == pytest.approx(0.8)
    assert ranking.accuracy_at(0.25)[0] == pytest.approx(0.2)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_leaves_nothing_to_tell_apart(right):
    ranking = Ranking.of(np.linspace(0, 1, 10), np.full(10, right))
    assert (ranking.auroc()[0], ranking.aurc()[0]) == (0.5, 0 if right else 1)
    assert ranking.excess_aurc()[0] == pytest.approx(0)


def test_accuracy_on_the_surest_share_counts_the_fewest_questions_that_make_it_up():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    correct = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    ranking = Ranking.of(confidence, correct)
    found = [ranking.accuracy_at(share)[0] for share in (0.25, 1 / 3, 0.5, 1)]
    assert found == pytest.approx([2 / 3, 2 / 3, 3 / 5, 3 / 9])


def test_counts_are_decisions_that_come_several_times(decisions):
    confidence, correct = decisions
    draw = np.random.default_rng(1)
    chosen = draw.integers(len(correct), size=(4, len(correct)))
    counts = np.stack([np.bincount(row, minlength=len(correct)) for row in chosen]).astype(float)
    together = Ranking.of(confidence, correct, counts)
    for number, rows in enumerate(chosen):
        alone = Ranking.of(confidence[rows], correct[rows])
        for method in METHODS:
            expected = getattr(alone, method)()[0]
            assert getattr(together, method)()[number] == pytest.approx(expected, abs=1e-12)
        for share in (0.25, 0.5, 0.75, 1.0):
            expected = alone.accuracy_at(share)[0]
            assert together.accuracy_at(share)[number] == pytest.approx(expected, abs=1e-12)


def test_coverage_ends_at_the_accuracy_and_starts_with_the_surest():
    confidence = np.array([0.2, 0.9, 0.5, 0.7])
    share, accuracy = coverage_curve(confidence, np.array([False, True, False, True]))
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 0.5])


def test_equally_sure_answers_are_one_point_of_the_curve():
    confidence = np.array([0.5, 0.9, 0.5, 0.5])
    share, accuracy = coverage_curve(confidence, np.array([False, True, False, True]))
    assert share.tolist() == [0.25, 1.0]
    assert accuracy.tolist() == pytest.approx([1, 0.5])
