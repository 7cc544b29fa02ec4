import numpy as np
import pandas as pd
import pytest

from firstkd.settings import PromoteSettings
from flows.gate import Evidence, decide, paired_accuracy_difference

LIMITS = PromoteSettings(max_ece=0.15, max_accuracy_drop=0.02, max_ece_increase=0.02)
QUESTIONS = 200


def evidence(version: str, right: int, ece: float, test_digest: str = "same") -> Evidence:
    metrics = {"accuracy": right / QUESTIONS, "ece": ece}
    predictions = pd.DataFrame(
        {
            "set": "test",
            "id": [f"q{i}" for i in range(QUESTIONS)],
            "correct": np.arange(QUESTIONS) < right,
        }
    )
    calibrated = {name: {"value": value} for name, value in metrics.items()}
    return Evidence(version, test_digest, {"test": {"calibrated": calibrated}}, predictions)


def test_first_student_only_needs_honest_confidence() -> None:
    assert decide(evidence("1", 80, 0.15), None, LIMITS).passed
    verdict = decide(evidence("1", 80, 0.16), None, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0] == "ECE 0.160, at most 0.15 is allowed"


@pytest.mark.parametrize(
    ("right", "ece", "passes"),
    [(80, 0.05, True), (96, 0.02, True), (76, 0.05, True), (75, 0.05, False), (90, 0.08, False)],
)
def test_challenger_may_only_be_a_little_worse(right: int, ece: float, passes: bool) -> None:
    assert decide(evidence("2", right, ece), evidence("1", 80, 0.05), LIMITS).passed is passes


def test_other_test_questions_are_no_comparison() -> None:
    champion = evidence("1", 80, 0.05, test_digest="other")
    verdict = decide(evidence("2", 190, 0.01), champion, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0] == "champion v1 was tested on other questions"


def test_failed_checks_are_told_first() -> None:
    verdict = decide(evidence("2", 40, 0.05), evidence("1", 80, 0.05), LIMITS)
    assert verdict.reasons[0].startswith("accuracy -0.200 [")
    assert verdict.in_words("v2").splitlines()[0] == "v2 is not promoted"


def test_bootstrap_interval_is_that_of_drawn_questions() -> None:
    rng = np.random.default_rng(1)
    left, right = evidence("2", 0, 0.0).predictions, evidence("1", 0, 0.0).predictions
    left["correct"], right["correct"] = rng.random(QUESTIONS) < 0.5, rng.random(QUESTIONS) < 0.4
    differences = left["correct"].to_numpy(float) - right["correct"].to_numpy(float)
    drawn = rng.integers(0, QUESTIONS, (20_000, QUESTIONS))
    expected = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    change, low, high = paired_accuracy_difference(left, right.sample(frac=1, random_state=2))
    assert change == pytest.approx(differences.mean())
    assert [low, high] == pytest.approx(expected, abs=0.011)


def test_equal_answers_have_no_difference() -> None:
    same = evidence("1", 80, 0.0).predictions
    assert paired_accuracy_difference(same, same) == (0.0, 0.0, 0.0)
