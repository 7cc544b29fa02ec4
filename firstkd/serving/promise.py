"""What is promised about a student that answers only above a threshold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Promise:
    """At most `max_error` of the answers given are wrong, with probability `confidence`.

    It holds for questions like the calibration questions: firstkd/measure/risk.py.
    """

    max_error: float
    confidence: float
    threshold: float | None
    """The lowest confidence that is answered; None if no threshold keeps the promise."""
    questions: int
    """Questions in the calibration split."""
    answered: int
    """Questions at or above the threshold."""
    wrong: int
    """Wrong answers among those."""
    error_bound: float | None
    """Upper confidence bound on the share of answers that are wrong; None without a threshold."""

    @property
    def coverage(self) -> float:
        """The share of questions that the student is expected to answer."""
        return self.answered / self.questions

    @property
    def abstain_below(self) -> float:
        """The confidence to abstain below; infinite if nothing can be promised."""
        return math.inf if self.threshold is None else self.threshold

    def __str__(self) -> str:
        wanted = f"at most {self.max_error:.0%} wrong, with {self.confidence:.0%} confidence"
        if self.threshold is None:
            return f"no threshold can promise {wanted}, so nothing is answered"
        return (
            f"answers with a confidence of {self.threshold:.3f} or more promise {wanted}; "
            f"{self.coverage:.0%} of the questions are expected to get one"
        )


@dataclass(frozen=True)
class Threshold:
    """The confidence to abstain below, if there is one."""

    abstain_below: float | None = None
    promise: Promise | None = None
    """The promise it keeps, if it comes from a policy."""

    @classmethod
    def of(cls, kept: Mapping[str, Any], abstain_below: float | None) -> Self:
        """Return the threshold of a calibration's `policy`, unless a number replaces it."""
        policy = kept.get("policy") if abstain_below is None else None
        promise = Promise(**policy) if policy else None
        return cls(promise.abstain_below if promise else abstain_below, promise)

    def in_force(self) -> dict[str, Any]:
        """Return what a server reports about it: no number if nothing can be promised."""
        if self.promise is None:
            return {"threshold": self.abstain_below, "promise": None}
        return {"threshold": self.promise.threshold, "promise": str(self.promise)}
