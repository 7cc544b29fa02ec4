import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest

from firstkd.measure import bootstrap
from firstkd.measure.bootstrap import Resampled
from firstkd.operation_settings import PromoteSettings
from tasks.evidence import Evidence
from tasks.gate import answered_alike, decide

LIMITS = PromoteSettings(
    max_ece=0.15,
    max_accuracy_drop=0.02,
    max_nll_increase=0.05,
    max_brier_increase=0.02,
    max_aurc_increase=0.05,
    max_out_of_domain_drop=0.05,
    min_share_of_teacher=0.5,
    require_better_than_guessing=True,
    min_coverage=0.0,
    max_risk=0.5,
    bootstrap_samples=4000,
    require_reproducible=True,
)
QUESTIONS, CHOICES = 200, 4


def answers(name: str, right: int, confidence: float) -> pd.DataFrame:
    """Of a model that is right in the first `right` questions, and equally sure of all."""
    answer = np.arange(QUESTIONS) % CHOICES
    given = np.where(np.arange(QUESTIONS) < right, answer, (answer + 1) % CHOICES)
    chosen = np.arange(CHOICES) == given[:, None]
    others = (1 - confidence) / (CHOICES - 1)
    return pd.DataFrame(
        {
            "set": name,
            "id": [f"q{i}" for i in range(QUESTIONS)],
            "answer": [f"a{index}" for index in answer],
            "answer_index": answer,
            "is_right": (np.arange(CHOICES) == answer[:, None]).tolist(),
            "scores": np.where(chosen, math.log(confidence), math.log(others)).tolist(),
        }
    )


def evidence(
    version: str,
    right: int,
    ece: float = 0.05,
    test_digest: str = "same",
    elsewhere: dict[str, int] | None = None,
    not_reproducible: str | None = None,
    teacher: float | None = None,
) -> Evidence:
    """One confidence for all questions, `ece` above what is right of them."""
    share = right / QUESTIONS
    predictions = pd.concat(
        [
            answers(name, count, share + ece)
            for name, count in {"test": right, **(elsewhere or {})}.items()
        ],
        ignore_index=True,
    )
    margin = 1.96 * math.sqrt(share * (1 - share) / QUESTIONS)
    accuracy = {"value": share, "low": share - margin, "high": share + margin}
    sets = {"test": {"calibrated": {"accuracy": accuracy, "ece": {"value": ece}}}}
    return Evidence(version, test_digest, sets, 1.0, predictions, teacher, not_reproducible)


def test_first_student_needs_honest_confidence() -> None:
    assert decide(evidence("1", 80, 0.15), None, LIMITS).passed
    verdict = decide(evidence("1", 80, 0.16), None, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0] == "ECE 0.160, at most 0.15 is allowed"


@pytest.mark.parametrize(("right", "passes"), [(45, False), (60, False), (64, True)])
def test_first_student_must_beat_guessing_beyond_its_interval(right: int, passes: bool) -> None:
    verdict = decide(evidence("1", right), None, LIMITS)
    assert verdict.passed is passes
    if not passes:
        assert verdict.reasons[0].endswith("must be above the 0.250 of guessing at random")
    lenient = LIMITS.model_copy(update={"require_better_than_guessing": False})
    assert decide(evidence("1", right), None, lenient).passed


@pytest.mark.parametrize("column", ["answer", "answer_index"])
def test_first_student_must_beat_what_is_right_most_often(column: str) -> None:
    """Right in 40 % where one answer alone is right in half of the questions."""
    challenger = evidence("1", 80)
    rows = challenger.predictions
    rows.loc[: QUESTIONS // 2, column] = "yes" if column == "answer" else 0
    verdict = decide(challenger, None, LIMITS)
    assert not verdict.passed
    what = "giving the most frequent answer" if column == "answer" else "choosing the most frequent"
    assert f"of always {what}" in verdict.reasons[0]


def exported(right: int) -> Evidence:
    return dataclasses.replace(evidence("1", 100), exports={"browser": evidence("1", right)})


@pytest.mark.parametrize(("right", "passes"), [(100, True), (97, True), (95, False)])
def test_an_export_may_lose_no_more_than_is_allowed(right: int, passes: bool) -> None:
    limits = LIMITS.model_copy(update={"max_export_drop": 0.02})
    verdict = decide(exported(right), None, limits)
    assert verdict.passed is passes
    assert decide(exported(right), None, LIMITS).passed  # asked for nothing
    if not passes:
        assert re.fullmatch(
            r"export browser: accuracy -0\.025 \[-0\.0\d\d, -0\.0\d\d\] against the student's "
            r"0\.500; a drop of 0\.02 is allowed, the risk of more is \d+% \(at most 50%\)",
            verdict.reasons[0],
        )


def test_an_export_that_was_not_measured_is_no_proof() -> None:
    limits = LIMITS.model_copy(update={"max_export_drop": 0.02})
    verdict = decide(evidence("1", 100), None, limits)
    assert verdict.reasons[0].startswith("no export of it was measured") and not verdict.passed


def test_equal_choices_make_guessing_easier() -> None:
    challenger = evidence("1", 80)
    twice = [[i in (a, (a + 1) % CHOICES) for i in range(CHOICES)] for a in range(CHOICES)]
    challenger.predictions["is_right"] = [
        twice[index] for index in challenger.predictions["answer_index"]
    ]
    assert "0.500 of guessing at random" in decide(challenger, None, LIMITS).reasons[0]


def test_first_student_must_keep_a_share_of_its_teachers_accuracy() -> None:
    assert decide(evidence("1", 80, teacher=0.79), None, LIMITS).passed
    verdict = decide(evidence("1", 80, teacher=0.82), None, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0] == (
        "accuracy 0.400 against the teacher's 0.820; at least 50% of it, 0.410, is required"
    )
    alone = decide(evidence("1", 80), None, LIMITS)
    assert alone.passed and any("no teacher was evaluated" in words for words in alone.reasons)
    champion = evidence("1", 80)
    assert decide(evidence("2", 80, teacher=0.82), champion, LIMITS).passed


@pytest.mark.parametrize(
    ("right", "ece", "passes"),
    [(80, 0.05, True), (96, 0.02, True), (76, 0.05, True), (75, 0.05, False), (90, 0.3, False)],
)
def test_challenger_may_only_be_a_little_worse(right: int, ece: float, passes: bool) -> None:
    assert decide(evidence("2", right, ece), evidence("1", 80, 0.05), LIMITS).passed is passes


def test_turns_of_one_conversation_prove_less_than_as_many_questions() -> None:
    champion, challenger = evidence("1", 100), evidence("2", 80)

    def interval() -> float:
        reasons = " ".join(decide(challenger, champion, LIMITS).reasons)
        low, high = re.findall(r"accuracy \S+ \[(\S+), (\S+)\]", reasons)[0]
        return float(high) - float(low)

    before = interval()
    challenger.predictions["group"] = challenger.predictions["id"]
    assert interval() == before
    challenger.predictions["group"] = [f"c{i // 20}" for i in range(QUESTIONS)]
    assert interval() > 2 * before  # all that differ are of one conversation
    champion.predictions["group"] = None  # of a release that did not record it
    assert champion.groups("test") is None


def test_other_test_questions_are_no_comparison() -> None:
    champion = evidence("1", 80, 0.05, test_digest="other")
    verdict = decide(evidence("2", 190, 0.01), champion, LIMITS)
    assert not verdict.passed
    assert verdict.reasons[0].startswith("champion v1 was tested on other questions (test set oth")


def test_champion_measured_anew_is_compared_and_the_verdict_says_so() -> None:
    champion = dataclasses.replace(evidence("1", 80, 0.05), measured_anew=True)
    verdict = decide(evidence("2", 81, 0.05), champion, LIMITS)
    assert verdict.passed
    words = "champion v1, tested on other questions, was measured again on these"
    assert verdict.reasons[-1] == words
    assert not decide(evidence("2", 60, 0.05), champion, LIMITS).passed


def test_only_answers_to_every_question_are_alike() -> None:
    one, two = {"openbookqa": 60}, {"openbookqa": 60, "more": 1}
    challenger = evidence("2", 80, 0.05, elsewhere=one)
    assert answered_alike(challenger, evidence("1", 70, 0.05, elsewhere=one))
    assert answered_alike(challenger, evidence("1", 70, 0.05, elsewhere=two))
    assert not answered_alike(evidence("2", 80, 0.05, elsewhere=two), challenger)
    assert not answered_alike(challenger, evidence("1", 80, 0.05, "other", elsewhere=one))
    for column in ("id", "answer"):  # other questions, or a corrected answer to one
        champion = evidence("1", 70, 0.05, elsewhere=one)
        rows = champion.predictions["set"] != "test"
        champion.predictions.loc[rows.idxmax(), column] = "x"
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
    verdict = decide(evidence("2", 60, 0.05), evidence("1", 80, 0.05), LIMITS)
    assert verdict.reasons[0].startswith("accuracy -0.100 [")
    assert verdict.in_words("v2").splitlines()[0] == "v2 is not promoted"


def test_other_probabilities_of_the_same_answers_are_refused_by_their_loss() -> None:
    """Equally accurate, but its confidence says less of what is right."""
    rng = np.random.default_rng(0)
    champion, challenger = evidence("1", 120), evidence("2", 120)
    champion.predictions["scores"] = informed(champion.predictions, rng, skill=2.0)
    challenger.predictions["scores"] = informed(challenger.predictions, rng, skill=0.0)
    verdict = decide(challenger, champion, LIMITS)
    assert not verdict.passed
    first_words = {words.split()[0] for words in verdict.reasons if "a rise of" in words}
    assert first_words == {"NLL", "Brier", "AURC"}
    failed = [words for words in verdict.reasons if words.startswith(("NLL +", "AURC +"))]
    assert len(failed) == 2 and "risk of more is 100%" in failed[-1]
    assert decide(champion, challenger, LIMITS).passed


def informed(rows: pd.DataFrame, rng: np.random.Generator, skill: float) -> list[list[float]]:
    """The same answers, surer by `skill` where they are right, with some noise."""
    scores = np.array(rows["scores"].tolist())
    given = scores.argmax(-1)
    is_right = given == rows["answer_index"].to_numpy()
    scores[np.arange(len(rows)), given] = scores.max(-1) + skill * is_right + rng.random(len(rows))
    return scores.tolist()


def test_the_champion_is_served_at_its_own_temperature() -> None:
    champion = evidence("1", 80)
    hot = dataclasses.replace(champion, temperature=5.0)
    nll = champion.served("test").values()["nll"]
    assert hot.served("test").values()["nll"] != pytest.approx(nll, abs=0.01)
    scores = np.array(hot.of_set("test")["scores"][0]) / 5
    confidence = hot.served("test").confidence[0]
    assert confidence == pytest.approx(np.exp(scores.max()) / np.exp(scores).sum())


def test_a_champion_of_an_earlier_release_is_to_be_measured_again() -> None:
    champion = evidence("1", 80)
    champion = dataclasses.replace(
        champion, predictions=champion.predictions.drop(columns="answer")
    )
    challenger = evidence("2", 80)
    assert not answered_alike(challenger, champion)
    verdict = decide(challenger, champion, LIMITS)
    assert not verdict.passed and "recorded by an earlier release" in verdict.reasons[0]


def test_the_risk_is_that_of_drawn_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BLOCK", 70 * QUESTIONS)  # in many parts
    verdict = decide(evidence("2", 77), evidence("1", 80), LIMITS)
    [accuracy] = [words for words in verdict.reasons if words.startswith("accuracy")]
    assert re.search(r"the risk of more is 1[789]%", accuracy)


def test_equal_answers_have_no_risk() -> None:
    verdict = decide(evidence("2", 80), evidence("1", 80), LIMITS)
    assert verdict.passed
    assert sum("the risk of more is 0%" in words for words in verdict.reasons) == 4
    assert Resampled(0.0, np.zeros(100)).risk_above(0.0) == 0


def answering(share: float, error: float) -> Evidence:
    found = evidence("2", 150)
    coverage = {"value": share, "low": 0.0, "high": 1.0}
    wrong = {"value": error, "low": 0.02, "high": 0.15}
    test = {**found.sets["test"], "policy": {"coverage": coverage, "error": wrong}}
    return dataclasses.replace(found, sets={**found.sets, "test": test})


def test_a_student_that_answers_too_little_under_its_policy_is_refused():
    limits = LIMITS.model_copy(update={"min_coverage": 0.3})
    words = "under its policy it answers 25% of the test questions, 8.0% of them wrong"
    refused = decide(answering(0.25, 0.08), None, limits)
    assert not refused.passed and refused.reasons[0].startswith(words)
    assert refused.reasons[0].endswith("at least 30% is required")
    assert decide(answering(0.35, 0.08), None, limits).passed
    # without a limit it is stated alone
    told = decide(answering(0.0, 0.0), None, LIMITS)
    assert told.passed and "under its policy it answers 0% of the test questions" in told.reasons


def test_a_coverage_that_was_not_measured_does_not_pass_for_one():
    limits = LIMITS.model_copy(update={"min_coverage": 0.3})
    verdict = decide(evidence("2", 150), None, limits)
    assert not verdict.passed
    assert verdict.reasons[0].startswith("it was measured without serve.policy")
