"""The gate between a challenger and the champion: a pure function of evidence about versions.

A challenger that does not pass is a verdict, not an error.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from firstkd.settings import PromoteSettings

RESAMPLES = 10_000


@dataclass(frozen=True)
class Evidence:
    """What was measured of one registered version."""

    version: str
    test_digest: str
    sets: dict[str, Any]
    """Metrics per test set, as evaluate wrote them; a served student's are the calibrated ones."""
    predictions: pd.DataFrame

    def metric(self, name: str) -> float:
        return float(self.sets["test"]["calibrated"][name]["value"])


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]
    """One sentence per check, with its numbers; those of failed checks come first."""

    def in_words(self, who: str) -> str:
        word = "is promoted" if self.passed else "is not promoted"
        return "\n".join([f"{who} {word}", *(f"  - {reason}" for reason in self.reasons)])


def decide(challenger: Evidence, champion: Evidence | None, limits: PromoteSettings) -> Verdict:
    """Judge whether the challenger may take the champion's place.

    Accuracy is compared on the same questions: the drop is the observed one, and its bootstrap
    interval is told beside it, since a few hundred questions rarely prove a small difference.
    """
    ece = challenger.metric("ece")
    checks = [(ece <= limits.max_ece, f"ECE {ece:.3f}, at most {limits.max_ece:g} is allowed")]
    if champion is None:
        checks.append((True, "there is no champion to compare with"))
    elif champion.test_digest != challenger.test_digest:
        checks.append((False, f"champion v{champion.version} was tested on other questions"))
    else:
        checks += [_accuracy_check(challenger, champion, limits.max_accuracy_drop)]
        rise = ece - champion.metric("ece")
        words = (
            f"ECE {rise:+.3f} against champion v{champion.version}'s {champion.metric('ece'):.3f}, "
            f"a rise of {limits.max_ece_increase:g} is allowed"
        )
        checks.append((rise <= limits.max_ece_increase, words))
    reasons = [words for _, words in sorted(checks, key=lambda check: check[0])]
    return Verdict(all(held for held, _ in checks), tuple(reasons))


def _accuracy_check(challenger: Evidence, champion: Evidence, max_drop: float) -> tuple[bool, str]:
    change, low, high = paired_accuracy_difference(challenger.predictions, champion.predictions)
    words = (
        f"accuracy {change:+.3f} [{low:+.3f}, {high:+.3f}] against champion v{champion.version}'s "
        f"{champion.metric('accuracy'):.3f}, a drop of {max_drop:g} is allowed"
    )
    return change >= -max_drop - 1e-12, words


def paired_accuracy_difference(
    challenger: pd.DataFrame, champion: pd.DataFrame
) -> tuple[float, float, float]:
    """Return challenger − champion on the test set, with its 95 % bootstrap interval.

    Whole questions are drawn, so that both are always compared on the same ones.
    """
    both = _test_rows(challenger).merge(_test_rows(champion), on="id", validate="one_to_one")
    differences = both["correct_x"].to_numpy(float) - both["correct_y"].to_numpy(float)
    size = len(differences)
    # drawing questions with replacement = drawing how many of them are lost, kept and won
    shares = [(differences == value).sum() / size for value in (-1.0, 0.0, 1.0)]
    drawn = np.random.default_rng(0).multinomial(size, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / size, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def _test_rows(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.loc[predictions["set"] == "test", ["id", "correct"]]
