import numpy as np
import pytest

from firstkd.measure import bootstrap
from firstkd.measure.bootstrap import Draws, Resampled, resample
from firstkd.measure.comparison import paired_changes, paired_differences, summary
from firstkd.measure.metrics import Predictions

QUESTIONS, REPEATS, SAMPLES = 312, 150, 300


def answered(draw: np.random.Generator, sharpness: float, skill: float = 1.5) -> Predictions:
    """Answers drawn from a model's own probabilities; its scores are `sharpness` times too high."""
    honest = draw.normal(size=(QUESTIONS, 5)) * skill
    odds = np.exp(honest) / np.exp(honest).sum(-1, keepdims=True)
    answer = (odds.cumsum(-1) > draw.random((QUESTIONS, 1))).argmax(-1)
    return Predictions.of_choices(honest * sharpness, np.arange(5) == answer[:, None])


@pytest.mark.parametrize("sharpness", [1.0, 1.5])
def test_the_interval_of_the_ece_covers_what_such_a_sample_shows_on_average(sharpness):
    """By simulation, where the plain percentile interval of a calibrated model lies too high."""
    draw = np.random.default_rng(0)
    models = [answered(draw, sharpness) for _ in range(REPEATS)]
    expected = np.mean([model.values()["ece"] for model in models])
    found = [
        resample(lambda counts, m=model: m.metrics(counts, ["ece"]), Draws(QUESTIONS, SAMPLES, 0))
        for model in models
    ]
    estimates = [each["ece"].estimate(0, 1) for each in found]
    covered = np.mean([each.low <= expected <= each.high for each in estimates])
    assert covered >= 0.9
    assert all(each.low <= each.value <= each.high for each in estimates)
    middle = np.mean([(each.low + each.high) / 2 for each in estimates])
    percentile = np.mean([np.percentile(each["ece"].samples, [2.5, 97.5]) for each in found])
    assert middle == pytest.approx(expected, abs=0.004)
    if sharpness == 1.0:
        assert percentile - expected > 0.015


def test_a_difference_in_ece_does_not_shift_against_the_better_calibrated():
    draw = np.random.default_rng(0)
    shifts, percentile_shifts = [], []
    for _ in range(60):
        honest, sharp = answered(draw, 1.0), answered(draw, 1.5)
        change = paired_changes(honest, sharp, SAMPLES, seed=0, names=["ece"])["ece"]
        estimate = change.estimate()
        shifts.append((estimate.low + estimate.high) / 2 - estimate.value)
        percentile_shifts.append(np.percentile(change.samples, [2.5, 97.5]).mean() - change.value)
    assert np.mean(percentile_shifts) > 0.008  # the honest model looks worse than it was measured
    assert np.mean(shifts) == pytest.approx(0, abs=0.002)


def test_of_two_equally_calibrated_models_none_is_found_to_be_better():
    """One is right more often, which makes its confidence, and the bias of its ECE, another."""
    draw = np.random.default_rng(0)
    pairs = [(answered(draw, 1.0, skill=3.0), answered(draw, 1.0, skill=1.0)) for _ in range(100)]
    signs = [
        paired_differences(*pair, SAMPLES, seed=0, names=["ece"])["ece"].sign for pair in pairs
    ]
    assert np.mean(np.abs(signs)) <= 0.1


def test_a_mean_keeps_its_percentile_interval():
    draw = np.random.default_rng(0)
    values = draw.random(200)
    found = resample(lambda counts: {"mean": counts @ values / 200}, Draws(200, 2000, 0))["mean"]
    assert found.bias == 0
    low, high = np.percentile(found.samples, [2.5, 97.5])
    assert (found.estimate().low, found.estimate().high) == (low, high)


def test_draws_are_the_same_in_blocks(monkeypatch):
    whole = np.concatenate([*Draws(100, 50, seed=3)])
    assert whole.shape == (50, 100) and (whole.sum(-1) == 100).all()
    monkeypatch.setattr(bootstrap, "BLOCK", 700)
    blocks = [*Draws(100, 50, seed=3)]
    assert len(blocks) == 8
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_the_members_of_a_group_are_drawn_together():
    groups = np.array(["b", "a", "b", "c", "a", "a"])
    [counts] = [*Draws.grouped(groups, 40, seed=0)]
    for name in "abc":
        inside = counts[:, groups == name]
        assert (inside == inside[:, :1]).all()
    of_groups = counts[:, [1, 0, 3]]
    assert (of_groups.sum(-1) == 3).all()


def test_groups_of_one_are_drawn_as_single_decisions():
    [alone], [grouped] = ([*Draws.of(4, 30, 0, groups)] for groups in (None, ["d", "a", "c", "b"]))
    np.testing.assert_array_equal(alone, grouped)
    [pairs] = [*Draws.of(4, 30, 0, ["d", "a", "d", "a"])]
    assert (pairs[:, :2] == pairs[:, 2:]).all()


def test_an_interval_stays_within_what_the_metric_can_be():
    perfect = Predictions.of_choices(np.array([[5.0, 0.0]] * 50), np.array([[True, False]] * 50))
    found = summary(perfect, 200, 0)
    assert (found["accuracy"].low, found["accuracy"].high) == (1, 1)
    assert all(each.low >= 0 for name, each in found.items() if name != "trust")


def test_the_risk_is_the_share_of_samples_beyond_a_limit():
    change = Resampled(0.0, np.array([-0.2, -0.1, 0.1, 0.2]))
    assert [change.risk_above(limit) for limit in (-1.0, 0.0, 0.1, 0.2)] == [1, 0.5, 0.25, 0]
