"""What is promised of a student that answers only above a threshold."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """At most `max_error` of the answers given are wrong, with probability `confidence`.

    It holds for questions like the calibration questions: firstkd/measure/risk.py.
    """

    max_error: float
    confidence: float
    threshold: float | None
    """The least confidence that is answered; None if no threshold can promise that."""
    questions: int
    """Questions of the calibration split."""
    answered: int
    """Questions at or above the threshold."""
    wrong: int
    """Wrong answers among those."""
    error_bound: float | None
    """Upper confidence bound on the share of answers that are wrong; None without a threshold."""

    @property
    def coverage(self) -> float:
        """The share of questions that it is expected to answer."""
        return self.answered / self.questions

    @property
    def abstain_below(self) -> float:
        """The confidence to abstain below; infinite where nothing can be promised."""
        return math.inf if self.threshold is None else self.threshold

    def __str__(self) -> str:
        wanted = f"at most {self.max_error:.0%} wrong, with {self.confidence:.0%} confidence"
        if self.threshold is None:
            return f"no threshold can promise {wanted}, so nothing is answered"
        return (
            f"answers from a confidence of {self.threshold:.3f} promise {wanted}; "
            f"{self.coverage:.0%} of the questions are expected to get one"
        )
