"""Two models on the same questions: is a difference more than chance?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstkd.measure.metrics import Bools, Floats, Predictions, expected_calibration_error


@dataclass(frozen=True)
class Difference:
    """First − second, with its 95 % percentile bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval leaves 0 out, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired_differences(
    first: Predictions, second: Predictions, samples: int, seed: int
) -> dict[str, Difference]:
    """Return the differences in `accuracy` and `ece` of two models on the same decisions.

    Whole questions are drawn, so that both models are always compared on the same ones: what is
    hard for both cancels out, and the interval is narrower than those of the models suggest.
    """
    size = len(first.gold_probability)
    drawn = np.random.default_rng(seed).integers(size, size=(samples, size))
    observed, resampled = (
        _differences(first, second, chosen) for chosen in (np.arange(size), drawn)
    )
    found = {}
    for name, value in observed.items():
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        found[name] = Difference(float(value), float(low), float(high))
    return found


def _differences(
    first: Predictions, second: Predictions, chosen: NDArray[np.int64]
) -> dict[str, Floats]:
    """Of the decisions `chosen` [..., E]."""
    (accuracy, ece), (other_accuracy, other_ece) = (
        (correct.mean(-1), expected_calibration_error(model.confidence[chosen], correct))
        for model in (first, second)
        for correct in [model.correct[chosen]]
    )
    return {"accuracy": accuracy - other_accuracy, "ece": ece - other_ece}


def coverage_curve(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """Return coverage and accuracy [E] of a model that answers only its surest questions.

    (El-Yaniv and Wiener 2010.) The i-th point answers the i + 1 surest; equal confidences keep
    the questions' order.
    """
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(correct[order]) / answered
