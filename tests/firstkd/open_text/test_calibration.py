"""Calibrated confidence in answers of one's own words, and the promise that rests on it."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import binom

from firstkd.data.settings import PromptSettings
from firstkd.measure.metrics import Predictions
from firstkd.measure.risk import promise
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.open_text.calibration import DECISIONS, Calibration
from firstkd.open_text.metrics import of_each
from firstkd.open_text.settings import OpenTextSettings
from firstkd.open_text.writer import Writer
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.serving.settings import PolicySettings
from tests.firstkd.open_text.test_writer import SETTINGS
from tests.tiny import open_questions

FITTING = CalibrateSettings(criterion="nll", max_temperature=20.0, bootstrap_samples=100)
POLICY = PolicySettings(max_error=0.3, confidence=0.9)


def drawn(size, seed=0):
    """Return over-confident numbers, and whether each answer is right."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0.3, 1.2, size)
    right = 1 / (1 + np.exp(-odds))
    return 1 / (1 + np.exp(-3 * odds - 1)), generator.random(size) < right


def test_platt_and_temperature_are_the_likeliest_of_their_kind():
    confidence, correct = drawn(500)
    odds = np.log(confidence / (1 - confidence))

    def loss(slope, shift):
        return np.logaddexp(0, np.where(correct, -1, 1) * (slope * odds + shift)).mean()

    best = minimize(lambda x: loss(*x), [1.0, 0.0]).x
    found = Calibration.fit("platt", confidence, correct, FITTING)(confidence)
    # Platt's targets are less than certain, by 1 / 250 here
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-best[0] * odds - best[1])), atol=0.01)
    slope = minimize_scalar(lambda x: loss(x, 0), bounds=(0.05, 20), method="bounded").x
    found = Calibration.fit("temperature", confidence, correct, FITTING)(confidence)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-slope * odds)), atol=1e-3)


@pytest.mark.parametrize("kind", DECISIONS)
def test_it_rises_with_the_confidence_lowers_the_loss_and_survives_json(kind):
    confidence, correct = drawn(500)
    fitted = Calibration.fit(kind, confidence, correct, FITTING)
    assert (np.diff(fitted(np.sort(confidence))) >= -1e-9).all()
    others, right = drawn(2000, seed=1)
    before, after = (Predictions.of_answers(c, right).values() for c in (others, fitted(others)))
    assert after["nll"] < before["nll"] and after["ece"] < before["ece"] / 2
    again = Calibration.from_json(fitted.to_json())
    np.testing.assert_array_equal(again(others), fitted(others))
    assert ((fitted(np.array([0.0, 1.0])) >= 0) & (fitted(np.array([0.0, 1.0])) <= 1)).all()


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("right", [True, False])
def test_answers_that_are_all_right_or_all_wrong_give_numbers(kind, right):
    fitted = Calibration.fit(kind, drawn(30)[0], np.full(30, right), FITTING)
    assert np.isfinite(fitted(np.array([0.1, 0.9]))).all()


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_answers_that_are_right_less_often_if_surer_all_get_the_same(kind):
    """Their order is not turned around: by chance, few answers look like that."""
    confidence = np.linspace(0.1, 0.9, 40)
    fitted = Calibration.fit(kind, confidence, confidence < 0.3, FITTING)
    assert np.ptp(fitted(confidence)) < 1e-9
    assert fitted(confidence)[0] == pytest.approx(0.25, abs=0.02)


def broken_promises(confidence, correct, kind, size, splits=200):
    """Count the splits in which more of the rest is wrong than was promised."""
    generator, broken = np.random.default_rng(0), 0
    for _ in range(splits):
        order = generator.permutation(len(correct))
        part, rest = order[:size], order[size:]
        fitted = Calibration.fit(kind, confidence[part], correct[part], FITTING)
        kept = promise(fitted(confidence[part]), correct[part], POLICY)
        answered = fitted(confidence[rest]) >= kept.abstain_below
        wrong = ~correct[rest][answered]
        broken += bool(answered.any() and wrong.mean() > POLICY.max_error)
    return broken


@pytest.mark.parametrize("kind", DECISIONS)
def test_the_promise_is_kept_over_200_splits(kind):
    """Calibration included; against 8,000 answers that stand for all there are."""
    confidence, correct = drawn(8_000)
    assert broken_promises(confidence, correct, kind, 200) <= binom.ppf(0.999, 200, 0.1)


def test_the_promise_is_kept_by_what_a_model_writes(talker):
    """The rest of 280 answers is a sample itself: its error may exceed the limit by chance."""
    settings = OpenTextSettings.model_validate(
        {**SETTINGS, "confidence": {"kind": "mean_probability"}}
    )
    prompt = PromptSettings(format="cloze", max_length=96)
    writer = Writer(load_model(talker, "fp32"), load_tokenizer(talker), prompt, settings, 0, 96)
    examples = open_questions(280, seed=1)
    answers, confidence = writer.answer(examples)
    right = [example.response for example in examples]
    correct = of_each("token_f1", [a.text for a in answers], right) >= 0.9
    assert 0.2 < correct.mean() < 0.95
    broken = broken_promises(confidence, correct, "platt", 140)
    assert broken <= binom.ppf(0.999, 200, 0.15)
