import numpy as np
import pytest
import relplot
import torch
from scipy.special import softmax
from scipy.stats import bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from firstkd.measure.comparison import summary
from firstkd.measure.metrics import (
    METRICS,
    Predictions,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    smooth_calibration_error,
)
from tests.tiny import one_right


def made(num_classes: int) -> tuple[np.ndarray, np.ndarray, Predictions]:
    """Return probabilities of 500 decisions, the right answers, and what is measured of them."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(500, num_classes)) * 2
    answers = generator.integers(num_classes, size=500)
    predictions = Predictions.of_choices(scores, one_right(answers, num_classes))
    return softmax(scores, axis=-1), answers, predictions


@pytest.fixture
def predictions():
    return made(4)[2]


@pytest.mark.parametrize(("num_classes", "num_bins"), [(4, 10), (4, 15), (77, 10)])
def test_ece_agrees_with_torchmetrics(num_classes, num_bins):
    probabilities, answers, predictions = made(num_classes)
    expected = multiclass_calibration_error(
        *map(torch.tensor, (probabilities, answers)), num_classes=num_classes, n_bins=num_bins
    )
    ours = expected_calibration_error(predictions.confidence, predictions.correct, num_bins)
    assert float(ours[0]) == pytest.approx(float(expected), abs=1e-6)


def test_mce_agrees_with_torchmetrics():
    probabilities, answers, predictions = made(4)
    expected = multiclass_calibration_error(
        *map(torch.tensor, (probabilities, answers)), num_classes=4, n_bins=10, norm="max"
    )
    ours = maximum_calibration_error(predictions.confidence, predictions.correct)
    assert float(ours[0]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0])
def test_smooth_ece_agrees_with_its_authors_code(sharpness):
    generator = np.random.default_rng(0)
    confidence = generator.beta(4, 2, size=2000)
    odds = sharpness * np.log(confidence / (1 - confidence))
    correct = generator.random(2000) < 1 / (1 + np.exp(-odds))
    expected = relplot.smECE(confidence, correct.astype(float))
    ours = smooth_calibration_error(confidence, correct)[0]
    assert ours == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("num_classes", [4, 77])
def test_ece_agrees_with_scikit_learn(num_classes):
    *_, predictions = made(num_classes)
    confidence, correct = predictions.confidence, predictions.correct
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)  # of bins that are not empty
    counts, _ = np.histogram(confidence, bins=10, range=(0, 1))
    shares = counts[counts > 0] / len(correct)
    ours = expected_calibration_error(confidence, correct, 10)
    assert float(ours[0]) == pytest.approx(shares @ np.abs(accuracy - mean), abs=1e-9)


def test_equal_mass_ece_agrees_with_scikit_learn(predictions):
    confidence, correct = predictions.confidence, predictions.correct
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy="quantile")
    ours = equal_mass_calibration_error(confidence, correct)  # 500 examples: 50 in each bin
    assert float(ours[0]) == pytest.approx(np.abs(accuracy - mean).mean(), abs=1e-9)


def test_a_hand_worked_equal_mass_ece():
    confidence, correct = np.array([0.9, 0.5, 0.7, 0.6]), np.array([True, False, True, True])
    expected = 0.5 * abs(0.5 - 0.55) + 0.5 * abs(1 - 0.8)
    found = equal_mass_calibration_error(confidence, correct, num_bins=2)
    assert float(found[0]) == pytest.approx(expected)


def test_the_two_readings_of_confidence():
    # the answer tokens hold 0.6 of the vocabulary's mass: 0.4 is 0.4 of it, and 2/3 of the choices
    logprobs = np.log([[0.4, 0.2]])
    over_vocabulary = Predictions.of_answer_tokens(logprobs, np.array([[False, True]]))
    over_choices = Predictions.of_choices(logprobs, np.array([[False, True]]))
    assert over_vocabulary.confidence[0] == pytest.approx(0.4)
    assert over_choices.confidence[0] == pytest.approx(2 / 3)
    assert over_vocabulary.values()["nll"] == pytest.approx(-np.log(0.2))


def test_nll_and_brier_agree_with_scikit_learn_and_by_hand():
    probabilities, answers, predictions = made(4)
    values = predictions.values()
    assert values["nll"] == pytest.approx(log_loss(answers, probabilities))
    brier = np.mean(np.sum((probabilities - np.eye(4)[answers]) ** 2, axis=1))
    assert values["brier"] == pytest.approx(brier)
    assert values["trust"] == pytest.approx(values["accuracy"] - values["ece"])


def test_a_hand_worked_ece():
    # bins (0.5, 0.6] with 2 of 2 right and (0.9, 1] with 1 of 2 right
    confidence = np.array([0.55, 0.6, 0.95, 1.0])
    correct = np.array([True, True, True, False])
    expected = 0.5 * abs(1 - 0.575) + 0.5 * abs(0.5 - 0.975)
    assert float(expected_calibration_error(confidence, correct)[0]) == pytest.approx(expected)


def test_counts_are_decisions_that_come_several_times(predictions):
    chosen = np.random.default_rng(1).integers(500, size=(3, 500))
    counts = np.stack([np.bincount(rows, minlength=500) for rows in chosen]).astype(float)
    together = predictions.metrics(counts)
    assert tuple(together) == METRICS
    for number, rows in enumerate(chosen):
        alone = predictions[rows].values()
        found = {name: float(values[number]) for name, values in together.items()}
        assert found == pytest.approx(alone, abs=1e-9)


def test_only_the_metrics_asked_for_are_computed(predictions):
    once = np.ones((1, 500))
    assert predictions.metrics(once, ["aurc", "nll"]).keys() == {"aurc", "nll"}


def test_an_answer_in_the_words_of_the_right_one_is_right():
    """Choices a, b, b, of which the third is marked right: the second is it as well."""
    scores = np.log([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    found = Predictions.of_choices(scores, np.array([[False, True, True]] * 2))
    assert found.correct.tolist() == [True, False]
    assert found.gold_probability == pytest.approx([0.8, 0.4])
    assert found.squared_error == pytest.approx([0.2**2 + 0.2**2, 0.6**2 + 0.6**2])


def test_groups_are_drawn_together(predictions):
    groups = np.arange(500) // 5
    alike = predictions[groups]  # each group's five decisions are the same one
    grouped = summary(alike, 4000, 0, groups=groups[::-1])["accuracy"]
    reference = bootstrap(
        (alike.correct[::5].astype(float),),
        np.mean,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert grouped.low == pytest.approx(reference.low, abs=0.015)
    assert grouped.high == pytest.approx(reference.high, abs=0.015)
    alone = summary(alike, 4000, 0, groups=np.arange(500))["accuracy"]
    assert alone.high - alone.low < 0.6 * (grouped.high - grouped.low)


def test_intervals_agree_with_scipy(predictions):
    found = summary(predictions, 4000, 0)["accuracy"]
    reference = bootstrap(
        (predictions.correct.astype(float),),
        np.mean,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found.low == pytest.approx(reference.low, abs=0.005)
    assert found.high == pytest.approx(reference.high, abs=0.005)


def test_calibrated_predictions_have_little_error():
    generator = np.random.default_rng(0)
    confidence = generator.random(50_000)
    correct = generator.random(50_000) < confidence
    assert float(expected_calibration_error(confidence, correct)[0]) < 0.01


def test_the_tail_counts_as_a_candidate():
    found = Predictions.of(
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
