"""The gate between a challenger and the champion: a pure function of evidence about versions.

A challenger that does not pass is a verdict, not an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from firstkd.measure.metrics import expected_calibration_error
from firstkd.settings import PromoteSettings

DRAWN_AT_ONCE = 4_000_000
"""Questions of a bootstrap in memory; a large test set is drawn in several parts."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Evidence:
    """What was measured of one registered version."""

    version: str
    test_digest: str
    sets: dict[str, Any]
    """Metrics per test set, as evaluate wrote them; a served student's are the calibrated ones."""
    predictions: pd.DataFrame
    """One row per question of every test set: set, id, correct, calibrated_confidence."""
    not_reproducible: str | None = None
    """Why its commit does not rebuild it, if so."""
    measured_anew: bool = False
    """Whether this was measured for the comparison, since it was tested on other questions."""

    def metric(self, name: str, set_name: str = "test") -> float:
        return float(self.sets[set_name]["calibrated"][name]["value"])


Outcome = Literal["promoted", "rejected", "in charge", "rolled back"]
WORDS: dict[Outcome, str] = {
    "promoted": "is promoted",
    "rejected": "is not promoted",
    "in charge": "is the champion already",
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


@dataclass(frozen=True)
class Change:
    """Challenger − champion on the same questions, and what a paired bootstrap makes of it."""

    value: float
    samples: NDArray[np.float64]

    def risk_below(self, limit: float) -> float:
        """Return the share of resamples below `limit`."""
        return float((self.samples < limit - ROUNDING).mean())

    def __str__(self) -> str:
        low, high = np.quantile(self.samples, [0.025, 0.975])
        return f"{self.value:+.3f} [{low:+.3f}, {high:+.3f}]"


Check = tuple[bool, str]
"""Whether it held, and the sentence that says so with its numbers."""


def decide(challenger: Evidence, champion: Evidence | None, limits: PromoteSettings) -> Verdict:
    """Judge whether the challenger may take the champion's place.

    Both are compared on the same questions. A change holds when the observed one is within its
    limit and the risk that it is not, by paired bootstrap, is at most `limits.max_risk`.
    """
    checks = [_ece_ceiling(challenger, limits), *_reproducible(challenger, limits)]
    if champion is None:
        checks.append((True, "there is no champion to compare with"))
    elif champion.test_digest != challenger.test_digest:
        words = (
            f"champion v{champion.version} was tested on other questions (test set "
            f"{champion.test_digest[:8]}, not {challenger.test_digest[:8]}), and these are not in "
            "data/prepare to measure it again: no comparison is fair"
        )
        checks.append((False, words))
    else:
        checks += _comparisons(challenger, champion, limits)
        if champion.measured_anew:
            words = f"champion v{champion.version}, tested on other questions, was measured anew"
            checks.append((True, f"{words} on these"))
    reasons = [words for _, words in sorted(checks, key=lambda check: check[0])]
    return Verdict("promoted" if all(held for held, _ in checks) else "rejected", tuple(reasons))


def answered_alike(challenger: Evidence, champion: Evidence) -> bool:
    """Whether the champion answered every question that the challenger did."""
    if challenger.test_digest != champion.test_digest:
        return False
    ours, theirs = _sets(challenger), _sets(champion)
    return all(name in theirs and set(ours[name]["id"]) == set(theirs[name]["id"]) for name in ours)


def _ece_ceiling(challenger: Evidence, limits: PromoteSettings) -> Check:
    ece = challenger.metric("ece")
    return ece <= limits.max_ece, f"ECE {ece:.3f}, at most {limits.max_ece:g} is allowed"


def _reproducible(challenger: Evidence, limits: PromoteSettings) -> list[Check]:
    if challenger.not_reproducible is None:
        return []
    words = f"it cannot be rebuilt: {challenger.not_reproducible}"
    if limits.require_reproducible:
        return [(False, f"{words} (promote.require_reproducible asks for that)")]
    return [(True, f"{words}, which promote.require_reproducible: false allows")]


def _comparisons(
    challenger: Evidence, champion: Evidence, limits: PromoteSettings
) -> Iterator[Check]:
    who, risk = f"champion v{champion.version}'s", limits.max_risk
    for name, drawn in _by_set(challenger, champion):
        if isinstance(drawn, str):
            yield False, drawn
            continue
        accuracy, ece = compare(drawn, limits.bootstrap_samples)
        if name != "test":
            before = drawn["correct_champion"].mean()
            limit = limits.max_out_of_domain_drop
            yield _drop_check(f"accuracy on {name}", accuracy, f"{who} {before:.3f}", limit, risk)
            continue
        before, limit = champion.metric("accuracy"), limits.max_accuracy_drop
        yield _drop_check("accuracy", accuracy, f"{who} {before:.3f}", limit, risk)
        before, limit = champion.metric("ece"), limits.max_ece_increase
        yield _rise_check("ECE", ece, f"{who} {before:.3f}", limit, risk)


def _drop_check(what: str, change: Change, before: str, limit: float, max_risk: float) -> Check:
    risk = change.risk_below(-limit)
    held = change.value >= -limit - ROUNDING and risk <= max_risk
    return held, _sentence(what, change, before, f"a drop of {limit:g}", risk, max_risk)


def _rise_check(what: str, change: Change, before: str, limit: float, max_risk: float) -> Check:
    risk = Change(-change.value, -change.samples).risk_below(-limit)
    held = change.value <= limit + ROUNDING and risk <= max_risk
    return held, _sentence(what, change, before, f"a rise of {limit:g}", risk, max_risk)


def _sentence(
    what: str, change: Change, before: str, allowed: str, risk: float, max_risk: float
) -> str:
    return (
        f"{what} {change} against {before}; {allowed} is allowed, "
        f"the risk of more is {risk:.0%} (at most {max_risk:.0%})"
    )


def _by_set(challenger: Evidence, champion: Evidence) -> Iterator[tuple[str, pd.DataFrame | str]]:
    """Yield the paired predictions of each set that either was tested on, or why there are none.

    A set that is new has nothing to be compared with, and is left out.
    """
    ours, theirs = _sets(challenger), _sets(champion)
    for name in sorted(theirs, key=lambda name: (name != "test", name)):
        if name not in ours:
            yield name, f"it was not tested on {name}, as champion v{champion.version} was"
            continue
        both = ours[name].merge(
            theirs[name], on="id", validate="one_to_one", suffixes=("", "_champion")
        )
        if not len(both) == len(ours[name]) == len(theirs[name]):
            yield name, f"champion v{champion.version} was tested on other {name} questions"
        else:
            yield name, both


def _sets(evidence: Evidence) -> dict[str, pd.DataFrame]:
    columns = ["id", "correct", "calibrated_confidence"]
    return {str(name): rows[columns] for name, rows in evidence.predictions.groupby("set")}


def compare(both: pd.DataFrame, samples: int) -> tuple[Change, Change]:
    """Return the changes of accuracy and ECE over paired predictions, one row a question.

    Whole questions are drawn, so that challenger and champion are always compared on the same.
    """
    draw = np.random.default_rng(0)
    size = len(both)
    parts = []
    for count in _parts(samples, max(1, DRAWN_AT_ONCE // size)):
        parts.append(_changes(both, draw.integers(size, size=(count, size))))
    accuracy, ece = np.concatenate(parts, axis=1)
    observed = _changes(both, np.arange(size)[None])[:, 0]
    return Change(float(observed[0]), accuracy), Change(float(observed[1]), ece)


def _parts(total: int, largest: int) -> Iterator[int]:
    for start in range(0, total, largest):
        yield min(largest, total - start)


def _changes(both: pd.DataFrame, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Accuracy's and ECE's [2, R] over the questions `chosen` [R, E]."""
    measured = []
    for suffix in ("", "_champion"):
        correct = both[f"correct{suffix}"].to_numpy(bool)[chosen]
        confidence = both[f"calibrated_confidence{suffix}"].to_numpy(float)[chosen]
        measured.append([correct.mean(-1), expected_calibration_error(confidence, correct)])
    ours, theirs = np.asarray(measured)
    return np.asarray(ours - theirs, dtype=np.float64)
