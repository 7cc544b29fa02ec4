import numpy as np
import pytest
from scipy.stats import bootstrap

from firstkd.measure.comparison import paired_differences
from firstkd.measure.metrics import Predictions
from tests.tiny import one_right


def model(seed: int, size: int, skill: float) -> Predictions:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(size, 4))
    scores[:, 0] += skill
    return Predictions.of_choices(scores, one_right(np.zeros(size, dtype=np.int64), 4))


def test_a_model_does_not_differ_from_itself() -> None:
    same = model(0, 100, 1.0)
    for difference in paired_differences(same, same, samples=200, seed=0).values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.sign == 0


def test_difference_is_that_of_the_metrics_and_its_sign_is_told_once_it_is_sure() -> None:
    good, bad = model(0, 400, 2.0), model(1, 400, 0.0)
    found = paired_differences(good, bad, samples=500, seed=0)
    for name, difference in found.items():
        assert difference.value == pytest.approx(good.values()[name] - bad.values()[name])
        assert difference.low < difference.value < difference.high
    assert found["accuracy"].sign == 1
    assert paired_differences(bad, good, samples=500, seed=0)["accuracy"].sign == -1


def test_pairing_narrows_the_interval_of_models_that_fail_together() -> None:
    hard = np.arange(400) % 2 == 0
    scores = np.where(hard, -2.0, 2.0)[:, None] * np.array([1.0, 0.0])
    first = Predictions.of_choices(scores, one_right(np.zeros(400, dtype=np.int64), 2))
    scores[:10] *= -1
    second = Predictions.of_choices(scores, one_right(np.zeros(400, dtype=np.int64), 2))
    found = paired_differences(first, second, samples=500, seed=0)["accuracy"]
    assert found.high - found.low < 0.05  # each alone: 0.10


def test_interval_of_a_difference_agrees_with_scipy() -> None:
    first, second = model(0, 400, 1.0), model(1, 400, 0.5)
    found = paired_differences(first, second, samples=4000, seed=0)["accuracy"]
    change = first.correct.astype(float) - second.correct
    reference = bootstrap(
        (change,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.low == pytest.approx(reference.low, abs=0.006)
    assert found.high == pytest.approx(reference.high, abs=0.006)


def test_a_difference_on_conversations_is_as_unsure_as_one_on_as_many_questions() -> None:
    first, second = model(0, 100, 1.0), model(1, 100, 0.5)
    turns = np.arange(100).repeat(5)
    said = [each[turns] for each in (first, second)]
    kept = {"samples": 4000, "seed": 0, "names": ["accuracy"]}
    alone = paired_differences(first, second, **kept)["accuracy"]
    grouped = paired_differences(*said, **kept, groups=turns.tolist())["accuracy"]
    too_sure = paired_differences(*said, **kept)["accuracy"]
    assert grouped.low == pytest.approx(alone.low, abs=0.015)
    assert grouped.high == pytest.approx(alone.high, abs=0.015)
    assert too_sure.high - too_sure.low < 0.6 * (grouped.high - grouped.low)
