import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from firstkd.metrics import Predictions, expected_calibration_error, reliability_bins


@pytest.fixture
def predictions():
    generator = np.random.default_rng(0)
    return Predictions.of_choices(
        generator.normal(size=(500, 4)) * 2, generator.integers(4, size=500)
    )


@pytest.mark.parametrize("num_bins", [10, 15])
def test_ece_agrees_with_torchmetrics(predictions, num_bins):
    answers = torch.tensor(predictions.is_right.argmax(-1))
    expected = multiclass_calibration_error(
        torch.tensor(predictions.probabilities), answers, num_classes=4, n_bins=num_bins
    )
    ours = expected_calibration_error(predictions.confidence, predictions.correct, num_bins)
    assert float(ours) == pytest.approx(float(expected), abs=1e-6)


def test_nll_and_brier_agree_with_scikit_learn_and_by_hand(predictions):
    values = predictions.values()
    answers = predictions.is_right.argmax(-1)
    assert values["nll"] == pytest.approx(log_loss(answers, predictions.probabilities))
    brier = np.mean(np.sum((predictions.probabilities - np.eye(4)[answers]) ** 2, axis=1))
    assert values["brier"] == pytest.approx(brier)
    assert values["trust"] == pytest.approx(values["accuracy"] - values["ece"])


def test_a_hand_worked_ece():
    # bins (0.5, 0.6] with 2 of 2 right and (0.9, 1] with 1 of 2 right
    confidence = np.array([0.55, 0.6, 0.95, 1.0])
    correct = np.array([True, True, True, False])
    expected = 0.5 * abs(1 - 0.575) + 0.5 * abs(0.5 - 0.975)
    assert float(expected_calibration_error(confidence, correct)) == pytest.approx(expected)


def test_a_bootstrap_is_one_call(predictions):
    chosen = np.random.default_rng(1).integers(500, size=(3, 500))
    confidence, correct = predictions.confidence[chosen], predictions.correct[chosen]
    together = expected_calibration_error(confidence, correct)
    alone = [expected_calibration_error(c, k) for c, k in zip(confidence, correct, strict=True)]
    np.testing.assert_allclose(together, alone)


def test_intervals_agree_with_scipy(predictions):
    found = predictions.summary(bootstrap_samples=4000, seed=0)["accuracy"]
    reference = bootstrap(
        (predictions.correct.astype(float),),
        np.mean,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found["low"] == pytest.approx(reference.low, abs=0.005)
    assert found["high"] == pytest.approx(reference.high, abs=0.005)


def test_calibrated_predictions_have_little_error():
    generator = np.random.default_rng(0)
    confidence = generator.random(50_000)
    correct = generator.random(50_000) < confidence
    assert float(expected_calibration_error(confidence, correct)) < 0.01


def test_the_tail_counts_as_a_candidate():
    found = Predictions(
        probabilities=np.array([[0.6, 0.1]]),
        is_right=np.array([[False, False]]),
        gold_probability=np.array([0.05]),
    ).values()
    assert found["brier"] == pytest.approx(0.6**2 + 0.1**2 + 0.7**2)
    assert found["nll"] == pytest.approx(-np.log(0.05))
    assert found["accuracy"] == 0


def test_bins_count_every_example(predictions):
    bins = reliability_bins(predictions.confidence, predictions.correct)
    assert bins.count.sum() == 500
    assert (bins.confidence[bins.count > 0] > 0).all()
