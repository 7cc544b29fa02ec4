"""How good, and how honest: accuracy and calibration with bootstrap intervals.

Legend: E decisions, K candidates, G bins. Every function takes E on the last axis of
`confidence` and `correct`, so a bootstrap is one call on [samples, E].
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Bins:
    """A reliability diagram's numbers, [..., G] each; empty bins have mean 0."""

    count: Floats
    confidence: Floats
    accuracy: Floats


def reliability_bins(confidence: Floats, correct: Bools, num_bins: int = 10) -> Bins:
    """Equal-width bins of confidence, (i/G, (i+1)/G] (Guo et al. 2017, sec. 2)."""
    bin_of = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    leading = confidence.shape[:-1]
    samples = int(np.prod(leading))
    # one bincount for all bootstrap samples: each has its own range of bins
    flat = (bin_of.reshape(samples, -1) + np.arange(samples)[:, None] * num_bins).ravel()

    def per_bin(weights: Floats | None) -> Floats:
        counted = np.bincount(flat, weights, minlength=samples * num_bins)
        return counted.astype(np.float64).reshape(*leading, num_bins)

    count = per_bin(None)
    filled = np.maximum(count, 1)
    return Bins(
        count=count,
        confidence=per_bin(confidence.astype(np.float64).ravel()) / filled,
        accuracy=per_bin(correct.astype(np.float64).ravel()) / filled,
    )


def expected_calibration_error(confidence: Floats, correct: Bools, num_bins: int = 10) -> Floats:
    """Mean over examples of |accuracy − confidence| of their bin (Guo et al. 2017, eq. 3)."""
    bins = reliability_bins(confidence, correct, num_bins)
    gap = np.abs(bins.accuracy - bins.confidence)
    return np.asarray((bins.count * gap).sum(-1) / confidence.shape[-1])


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the candidates of E decisions, and which candidate is right."""

    probabilities: Floats
    """[E, K], 0 where there is no candidate; what is missing to 1 is the tail."""
    is_right: Bools
    """[E, K], True at the right candidate, nowhere in a row where that is in the tail."""
    gold_probability: Floats
    """[E] of what is right, candidate or not."""

    @classmethod
    def of_choices(cls, scores: Floats, answer_index: NDArray[np.int64]) -> Self:
        """From choice scores [E, C] (−inf where there is no choice) by softmax."""
        probabilities = softmax(scores.astype(np.float64), axis=-1)
        is_right = np.arange(scores.shape[-1]) == answer_index[:, None]
        return cls(probabilities, is_right, probabilities[is_right])

    @property
    def predicted_index(self) -> NDArray[np.int64]:
        return np.asarray(self.probabilities.argmax(-1))

    @property
    def confidence(self) -> Floats:
        return np.asarray(self.probabilities.max(-1))

    @property
    def correct(self) -> Bools:
        return np.take_along_axis(self.is_right, self.predicted_index[:, None], -1)[:, 0]

    def summary(self, bootstrap_samples: int, seed: int) -> dict[str, dict[str, float]]:
        """Each metric's value with its 95 % percentile bootstrap interval over decisions."""
        size = len(self.gold_probability)
        resampled = np.random.default_rng(seed).integers(size, size=(bootstrap_samples, size))
        samples = self._metrics(resampled)
        summary = {}
        for name, value in self._metrics(np.arange(size)).items():
            low, high = np.percentile(samples[name], [2.5, 97.5])
            summary[name] = {"value": float(value), "low": float(low), "high": float(high)}
        return summary

    def values(self) -> dict[str, float]:
        """Each metric's value alone."""
        every = np.arange(len(self.gold_probability))
        return {name: float(value) for name, value in self._metrics(every).items()}

    def _metrics(self, chosen: NDArray[np.int64]) -> dict[str, Floats]:
        """Of the decisions `chosen` [..., E]."""
        confidence, correct = self.confidence[chosen], self.correct[chosen]
        accuracy = correct.mean(-1)
        ece = expected_calibration_error(confidence, correct)
        return {
            "accuracy": accuracy,
            "mean_confidence": confidence.mean(-1),
            "ece": ece,
            "ece_15": expected_calibration_error(confidence, correct, num_bins=15),
            "brier": self._squared_error()[chosen].mean(-1),
            "nll": -np.log(np.maximum(self.gold_probability, 1e-30))[chosen].mean(-1),
            # our own summary in one number: accuracy less what the confidence misstates
            "trust": accuracy - ece,
        }

    def _squared_error(self) -> Floats:
        """Brier score per decision, the tail as one more candidate."""
        tail = 1 - self.probabilities.sum(-1)
        tail_is_right = ~self.is_right.any(-1)
        candidates = np.square(self.probabilities - self.is_right).sum(-1)
        return np.asarray(candidates + np.square(tail - tail_is_right))
