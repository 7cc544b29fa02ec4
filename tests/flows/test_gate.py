import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from firstkd.settings import PromoteSettings
from flows.gate import Evidence, answered_alike, compare, decide

LIMITS = PromoteSettings(
    max_ece=0.15,
    max_accuracy_drop=0.02,
    max_ece_increase=0.02,
    max_out_of_domain_drop=0.05,
    max_risk=0.5,
    bootstrap_samples=4000,
    require_reproducible=True,
)
QUESTIONS = 200


def evidence(
    version: str,
    right: int,
    ece: float,
    test_digest: str = "same",
    elsewhere: dict[str, int] | None = None,
    not_reproducible: str | None = None,
) -> Evidence:
    """One confidence for all questions, `ece` above what is right of them."""
    predictions = pd.concat(
        pd.DataFrame(
            {
                "set": name,
                "id": [f"q{i}" for i in range(QUESTIONS)],
                "correct": np.arange(QUESTIONS) < count,
                "calibrated_confidence": right / QUESTIONS + ece,
            }
        )
        for name, count in {"test": right, **(elsewhere or {})}.items()
    )
    metrics = {"accuracy": right / QUESTIONS, "ece": ece}
    calibrated = {name: {"value": value} for name, value in metrics.items()}
    sets = {"test": {"calibrated": calibrated}}
    return Evidence(version, test_digest, sets, predictions, not_reproducible)


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
    assert verdict.reasons[0].startswith("champion v1 was tested on other questions (test set oth")


def test_champion_measured_anew_is_compared_and_the_verdict_says_so() -> None:
    champion = dataclasses.replace(evidence("1", 80, 0.05), measured_anew=True)
    verdict = decide(evidence("2", 81, 0.05), champion, LIMITS)
    assert verdict.passed
    words = "champion v1, tested on other questions, was measured anew on these"
    assert verdict.reasons[-1] == words
    assert not decide(evidence("2", 60, 0.05), champion, LIMITS).passed


def test_only_answers_to_every_question_are_alike() -> None:
    one, two = {"openbookqa": 60}, {"openbookqa": 60, "more": 1}
    challenger = evidence("2", 80, 0.05, elsewhere=one)
    assert answered_alike(challenger, evidence("1", 70, 0.05, elsewhere=one))
    assert answered_alike(challenger, evidence("1", 70, 0.05, elsewhere=two))
    assert not answered_alike(evidence("2", 80, 0.05, elsewhere=two), challenger)
    assert not answered_alike(challenger, evidence("1", 80, 0.05, "other", elsewhere=one))
    champion = evidence("1", 70, 0.05, elsewhere=one)
    champion.predictions.loc[champion.predictions["set"] != "test", "id"] += "x"
    assert not answered_alike(challenger, champion)


def test_out_of_domain_may_only_drop_a_little() -> None:
    champion = evidence("1", 80, 0.05, elsewhere={"openbookqa": 60})
    assert decide(evidence("2", 80, 0.05, elsewhere={"openbookqa": 50}), champion, LIMITS).passed
    verdict = decide(evidence("2", 90, 0.05, elsewhere={"openbookqa": 49}), champion, LIMITS)
    assert verdict.reasons[0].startswith("accuracy on openbookqa -0.055 [")
    missing = decide(evidence("2", 90, 0.05), champion, LIMITS)
    assert missing.reasons[0] == "it was not tested on openbookqa, as champion v1 was"
    new_set = evidence("2", 80, 0.05, elsewhere={"openbookqa": 60, "more": 1})
    assert decide(new_set, champion, LIMITS).passed


def test_other_questions_elsewhere_are_no_comparison() -> None:
    champion = evidence("1", 80, 0.05, elsewhere={"openbookqa": 60})
    challenger = evidence("2", 80, 0.05, elsewhere={"openbookqa": 60})
    challenger.predictions.loc[challenger.predictions["set"] != "test", "id"] += "x"
    verdict = decide(challenger, champion, LIMITS)
    assert verdict.reasons[0] == "champion v1 was tested on other openbookqa questions"


def test_proof_is_harder_than_what_was_observed() -> None:
    """One question in 50 lost: within the limit, but a larger drop cannot be excluded."""
    challenger, champion = evidence("2", 77, 0.05), evidence("1", 80, 0.05)
    assert decide(challenger, champion, LIMITS).passed
    strict = LIMITS.model_copy(update={"max_risk": 0.05})
    verdict = decide(challenger, champion, strict)
    assert not verdict.passed
    # of 200 questions drawn, more than 4 of those lost in 18.5 % of the cases (binomial)
    assert re.search(r"the risk of more is 1[789]% \(at most 5%\)$", verdict.reasons[0])


def test_what_cannot_be_rebuilt_is_refused_unless_allowed() -> None:
    challenger = evidence("1", 80, 0.05, not_reproducible="it was made outside git")
    verdict = decide(challenger, None, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0].startswith("it cannot be rebuilt: it was made outside git (promote.")
    allowed = LIMITS.model_copy(update={"require_reproducible": False})
    assert decide(challenger, None, allowed).passed


def test_failed_checks_are_told_first() -> None:
    verdict = decide(evidence("2", 40, 0.05), evidence("1", 80, 0.05), LIMITS)
    assert verdict.reasons[0].startswith("accuracy -0.200 [")
    assert verdict.in_words("v2").splitlines()[0] == "v2 is not promoted"


def test_bootstrap_is_that_of_drawn_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    both = pd.DataFrame(
        {
            f"{column}{suffix}": values
            for suffix, share in (("", 0.5), ("_champion", 0.4))
            for column, values in (
                ("correct", rng.random(QUESTIONS) < share),
                ("calibrated_confidence", rng.random(QUESTIONS)),
            )
        }
    )
    monkeypatch.setattr("flows.gate.DRAWN_AT_ONCE", 70 * QUESTIONS)  # in many parts
    accuracy, ece = compare(both, 20_000)
    differences = both["correct"].to_numpy(float) - both["correct_champion"].to_numpy(float)
    drawn = rng.integers(0, QUESTIONS, (20_000, QUESTIONS))
    expected = differences[drawn].mean(axis=1)
    assert accuracy.value == pytest.approx(differences.mean())
    assert len(accuracy.samples) == len(ece.samples) == 20_000
    limits = [0.025, 0.5, 0.975]
    found = np.quantile(accuracy.samples, limits)
    assert found == pytest.approx(np.quantile(expected, limits), abs=0.011)
    assert ece.samples.std() > 0.01


def test_equal_answers_have_no_difference() -> None:
    same = evidence("1", 80, 0.05).predictions
    both = same.assign(
        correct_champion=same["correct"],
        calibrated_confidence_champion=same["calibrated_confidence"],
    )
    for change in compare(both, 100):
        assert change.value == 0 and not change.samples.any()
        assert change.risk_below(0.0) == 0
