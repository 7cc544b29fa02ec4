"""The gate between a challenger and the champion: a pure function of evidence about versions.

If a challenger does not pass, that is a verdict, not an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from firstkd.measure.bootstrap import ROUNDING, Resampled
from firstkd.measure.comparison import paired_changes
from firstkd.operation_settings import PromoteSettings
from tasks.evidence import Evidence

SEED = 0

Outcome = Literal["promoted", "rejected", "in charge", "replaced", "rolled back"]
WORDS: dict[Outcome, str] = {
    "promoted": "is promoted",
    "rejected": "is not promoted",
    "in charge": "is already the champion",
    "replaced": "is not promoted again",
    "rolled back": "is not promoted",
}


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reasons: tuple[str, ...]
    """One sentence per check, with its numbers; those of failed checks come first."""

    @property
    def passed(self) -> bool:
        return self.outcome in ("promoted", "in charge")

    def in_words(self, who: str) -> str:
        lines = [f"{who} {WORDS[self.outcome]}", *(f"  - {reason}" for reason in self.reasons)]
        return "\n".join(lines)


Check = tuple[bool, str]
"""Whether it held, and the sentence that says so with its numbers."""


def decide(challenger: Evidence, champion: Evidence | None, limits: PromoteSettings) -> Verdict:
    """Judge whether the challenger may take the champion's place.

    Both are compared on the same questions, at their own temperatures, as they are served. A
    change passes if the observed one is within its limit and the risk that it is not, by paired
    bootstrap, is at most `limits.max_risk`. Calibration error only has a ceiling: a sample's ECE is
    biased, the more so the better calibrated the model is, and so is the difference of two.
    """
    checks = [
        _ece_ceiling(challenger, limits),
        *_coverage(challenger, limits),
        *_reproducible(challenger, limits),
        *_exports(challenger, limits),
    ]
    if champion is None:
        checks.append((True, "there is no champion to compare with"))
        checks += _worth_starting_with(challenger, limits)
    elif not champion.is_complete:
        words = (
            f"champion v{champion.version}'s answers were recorded by an earlier release, without "
            "the scores that are now compared, and its test questions are not in data/prepare, so "
            "it cannot be measured again"
        )
        checks.append((False, words))
    elif champion.test_digest != challenger.test_digest:
        words = (
            f"champion v{champion.version} was tested on other questions (test set "
            f"{champion.test_digest[:8]}, not {challenger.test_digest[:8]}), and the new ones are "
            "not in data/prepare, so it cannot be measured again for a fair comparison"
        )
        checks.append((False, words))
    else:
        checks += _comparisons(challenger, champion, limits)
        if champion.measured_anew:
            words = f"champion v{champion.version}, tested on other questions, was measured again"
            checks.append((True, f"{words} on these"))
    reasons = [words for _, words in sorted(checks, key=lambda check: check[0])]
    return Verdict("promoted" if all(held for held, _ in checks) else "rejected", tuple(reasons))


def answered_alike(challenger: Evidence, champion: Evidence) -> bool:
    """Whether the champion's answers to all of the challenger's questions are recorded, and were
    judged by the same right answers."""
    if challenger.test_digest != champion.test_digest or not champion.is_complete:
        return False
    ours, theirs = _answers(challenger), _answers(champion)
    return all(name in theirs and ours[name] == theirs[name] for name in ours)


def _answers(evidence: Evidence) -> dict[str, set[tuple[str, str]]]:
    """Return each test set's questions with their right answers."""
    sets = evidence.predictions.groupby("set")
    return {str(name): set(zip(rows["id"], rows["answer"], strict=True)) for name, rows in sets}


def _ece_ceiling(challenger: Evidence, limits: PromoteSettings) -> Check:
    ece = challenger.metric("ece")
    return ece <= limits.max_ece, f"ECE {ece:.3f}, at most {limits.max_ece:g} is allowed"


def _coverage(challenger: Evidence, limits: PromoteSettings) -> Iterator[Check]:
    """Check the share answered under a policy; if none is required, only state it."""
    found = challenger.sets["test"].get("policy")
    if found is None:
        if limits.min_coverage:
            yield False, "it was measured without serve.policy, which promote.min_coverage needs"
        return
    share, error = (found[name] for name in ("coverage", "error"))
    words = f"under its policy it answers {share['value']:.0%} of the test questions"
    if share["value"]:
        words += f", {error['value']:.1%} of them wrong ({error['low']:.1%} to {error['high']:.1%})"
    asked = f"; at least {limits.min_coverage:.0%} is required" if limits.min_coverage else ""
    yield share["value"] >= limits.min_coverage, words + asked


def _reproducible(challenger: Evidence, limits: PromoteSettings) -> list[Check]:
    if challenger.not_reproducible is None:
        return []
    words = f"it cannot be rebuilt: {challenger.not_reproducible}"
    if limits.require_reproducible:
        return [(False, f"{words} (promote.require_reproducible requires it)")]
    return [(True, f"{words}, which promote.require_reproducible: false allows")]


def _exports(challenger: Evidence, limits: PromoteSettings) -> Iterator[Check]:
    """Check that the exports still answer as well as the student that is judged."""
    if (limit := limits.max_export_drop) is None:
        return
    if not challenger.exports:
        yield False, "no export of it was measured; promote.max_export_drop requires one"
    before, who = challenger.served("test"), f"the student's {challenger.metric('accuracy'):.3f}"
    for name, export in challenger.exports.items():
        there, groups = export.served("test"), challenger.groups("test")
        samples = limits.bootstrap_samples
        change = paired_changes(there, before, samples, SEED, ["accuracy"], groups)["accuracy"]
        yield _loss(f"export {name}: accuracy", change, who, limit, limits.max_risk, falls=True)


def _worth_starting_with(challenger: Evidence, limits: PromoteSettings) -> Iterator[Check]:
    """Without a champion, a student must beat guessing and keep some of its teacher's accuracy."""
    accuracy = challenger.metric("accuracy")
    if limits.require_better_than_guessing:
        low = challenger.metric("accuracy", "low")
        for name, share in _guesses(challenger.of_set("test")).items():
            words = f"accuracy {accuracy:.3f}: its lower bound of {low:.3f}"
            yield low > share, f"{words} must be above the {share:.3f} of {name}"
    if challenger.teacher_accuracy is None:
        words = "no teacher was evaluated, so the share of its accuracy that is kept is unknown"
        yield True, f"{words} (promote.min_share_of_teacher is not checked)"
        return
    needed = limits.min_share_of_teacher * challenger.teacher_accuracy
    yield (
        accuracy >= needed,
        f"accuracy {accuracy:.3f} against the teacher's {challenger.teacher_accuracy:.3f}; at "
        f"least {limits.min_share_of_teacher:.0%} of it, {needed:.3f}, is required",
    )


def _guesses(rows: pd.DataFrame) -> dict[str, float]:
    """Return how often someone who does not read the questions is right."""
    always = {"always giving the most frequent answer": _most_frequent(rows["answer"])}
    scores = np.array(rows["scores"].tolist(), dtype=np.float64)
    if not scores.shape[-1]:  # nobody can guess open text
        return always
    right = np.array(rows["is_right"].tolist()).sum(-1)
    return {
        "guessing at random": float((right / np.isfinite(scores).sum(-1)).mean()),
        "always choosing the most frequent position": _most_frequent(rows["answer_index"]),
        **always,
    }


def _most_frequent(values: "pd.Series[Any]") -> float:
    return float(values.value_counts(normalize=True).iloc[0])


def _comparisons(
    challenger: Evidence, champion: Evidence, limits: PromoteSettings
) -> Iterator[Check]:
    ours, theirs = _answers(challenger), _answers(champion)
    # a new set has nothing to be compared with
    for name in sorted(theirs, key=lambda name: (name != "test", name)):
        if name not in ours:
            yield False, f"it was not tested on {name}, as champion v{champion.version} was"
        elif ours[name] != theirs[name]:
            yield False, f"champion v{champion.version} was tested on other {name} questions"
        else:
            yield from _changes(challenger, champion, name, limits)


def _changes(
    challenger: Evidence, champion: Evidence, name: str, limits: PromoteSettings
) -> Iterator[Check]:
    allowed = {"accuracy": limits.max_out_of_domain_drop}
    if name == "test":
        allowed = {
            "accuracy": limits.max_accuracy_drop,
            "nll": limits.max_nll_increase,
            "brier": limits.max_brier_increase,
            "aurc": limits.max_aurc_increase,
        }
    before = champion.served(name)
    changes = paired_changes(
        challenger.served(name),
        before,
        limits.bootstrap_samples,
        SEED,
        [*allowed],
        challenger.groups(name),
    )
    words = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier score", "aurc": "AURC"}
    once = before.metrics(np.ones((1, len(before))), [*allowed])
    for metric, limit in allowed.items():
        what = words[metric] if name == "test" else f"{words[metric]} on {name}"
        who = f"champion v{champion.version}'s {once[metric][0]:.3f}"
        falls = metric == "accuracy"
        yield _loss(what, changes[metric], who, limit, limits.max_risk, falls)


def _loss(
    what: str, change: Resampled, before: str, limit: float, max_risk: float, falls: bool
) -> Check:
    """Check that a number does not fall (or, unless `falls`, rise) by more than a limit."""
    loss = Resampled(-change.value, -change.samples) if falls else change
    risk = loss.risk_above(limit)
    words = (
        f"{what} {change.estimate()} against {before}; a {'drop' if falls else 'rise'} of "
        f"{limit:g} is allowed, the risk of more is {risk:.0%} (at most {max_risk:.0%})"
    )
    return loss.value <= limit + ROUNDING and risk <= max_risk, words
