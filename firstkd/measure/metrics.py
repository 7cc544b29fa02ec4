"""How good, and how honest: accuracy and calibration with bootstrap intervals.

Legend: E decisions, K candidates, G bins. Every function takes E on the last axis of
`confidence` and `correct`, so a bootstrap is one call on [samples, E].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.special import softmax

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Summary = dict[str, dict[str, float]]
"""Of each metric `value`, `low` and `high`."""


@dataclass(frozen=True)
class Bins:
    """A reliability diagram's numbers, [..., G] each; empty bins have mean 0."""

    count: Floats
    confidence: Floats
    accuracy: Floats


def reliability_bins(confidence: Floats, correct: Bools, num_bins: int = 10) -> Bins:
    """Equal-width bins of confidence, (i/G, (i+1)/G] (Guo et al. 2017, sec. 2)."""
    bin_of = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    count = _sum_per_bin(bin_of, np.ones_like(confidence), num_bins)
    filled = np.maximum(count, 1)
    return Bins(
        count=count,
        confidence=_sum_per_bin(bin_of, confidence, num_bins) / filled,
        accuracy=_sum_per_bin(bin_of, correct, num_bins) / filled,
    )


def _sum_per_bin(bin_of: NDArray[np.int64], values: Floats | Bools, num_bins: int) -> Floats:
    """[..., G] sums of values [..., E] by their bin [..., E]."""
    leading = bin_of.shape[:-1]
    samples = int(np.prod(leading))
    # one bincount for all bootstrap samples: each has its own range of bins
    flat = (bin_of.reshape(samples, -1) + np.arange(samples)[:, None] * num_bins).ravel()
    sums = np.bincount(flat, values.astype(np.float64).ravel(), minlength=samples * num_bins)
    return np.asarray(sums, np.float64).reshape(*leading, num_bins)


def expected_calibration_error(confidence: Floats, correct: Bools, num_bins: int = 10) -> Floats:
    """Mean over examples of |accuracy − confidence| of their bin (Guo et al. 2017, eq. 3)."""
    bins = reliability_bins(confidence, correct, num_bins)
    gap = np.abs(bins.accuracy - bins.confidence)
    return np.asarray((bins.count * gap).sum(-1) / confidence.shape[-1])


def maximum_calibration_error(confidence: Floats, correct: Bools, num_bins: int = 10) -> Floats:
    """|accuracy − confidence| of the worst bin (Guo et al. 2017, eq. 5)."""
    bins = reliability_bins(confidence, correct, num_bins)
    return np.asarray(np.abs(bins.accuracy - bins.confidence).max(-1))


def equal_mass_calibration_error(confidence: Floats, correct: Bools, num_bins: int = 10) -> Floats:
    """ECE with bins of equally many examples, give or take one (Nixon et al. 2019)."""
    order = confidence.argsort(-1, kind="stable")
    gap = np.take_along_axis(correct - confidence, order, -1)
    size = confidence.shape[-1]
    bin_of = np.broadcast_to(np.arange(size) * num_bins // size, gap.shape)
    return np.asarray(np.abs(_sum_per_bin(bin_of, gap, num_bins)).sum(-1) / size)


def smooth_calibration_error(confidence: Floats, correct: Bools, mesh: int = 512) -> Floats:
    """smECE: no bins, but a Gaussian as wide as the error itself (Błasiok and Nakkiran 2023).

    Reflected at 0 and 1, the Gaussian multiplies the residuals' cosine transform, so that all
    bootstrap samples are smoothed at once, each at its own width.
    """
    cell = np.minimum((confidence * mesh).astype(np.int64), mesh - 1)
    residual = _sum_per_bin(cell, correct - confidence, mesh) / confidence.shape[-1]
    spectrum = dct(residual, norm="ortho")
    frequency = np.pi * np.arange(mesh)

    def error_at(width: Floats) -> Floats:
        smoothed = spectrum * np.exp(-np.square(frequency * width[..., None]) / 2)
        return np.asarray(np.abs(idct(smoothed, norm="ortho")).sum(-1))

    low, high = np.zeros(confidence.shape[:-1]), np.ones(confidence.shape[:-1])
    for _ in range(10):  # halvings, as in the authors' code: to 0.001
        middle = (low + high) / 2
        too_narrow = middle < error_at(middle)
        low, high = np.where(too_narrow, middle, low), np.where(too_narrow, high, middle)
    return error_at(high)


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

    @classmethod
    def of_answer_tokens(cls, logprobs: Floats, answer_index: NDArray[np.int64]) -> Self:
        """From log-probabilities [E, C] over the vocabulary, of answers that are one token each.

        The published evaluation's reading of confidence: other tokens keep their share.
        """
        probabilities = np.exp(logprobs.astype(np.float64))
        is_right = np.arange(logprobs.shape[-1]) == answer_index[:, None]
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

    def summary(
        self, bootstrap_samples: int, seed: int, groups: NDArray[np.int64] | None = None
    ) -> Summary:
        """Each metric's value with its 95 % percentile bootstrap interval over decisions.

        With `groups` [E], those of one group are drawn together: tokens of one text are not
        independent of each other.
        """
        size = len(self.gold_probability)
        if groups is None:
            draws = _draws(size, bootstrap_samples, seed)
        else:
            draws = _draws_of_groups(groups, bootstrap_samples, seed)
        resampled = [self.metrics(chosen) for chosen in draws]
        summary = {}
        for name, value in self.metrics(np.arange(size)).items():
            values = np.concatenate([np.atleast_1d(found[name]) for found in resampled])
            low, high = np.percentile(values, [2.5, 97.5])
            summary[name] = {"value": float(value), "low": float(low), "high": float(high)}
        return summary

    def values(self) -> dict[str, float]:
        """Each metric's value alone."""
        every = np.arange(len(self.gold_probability))
        return {name: float(value) for name, value in self.metrics(every).items()}

    def metrics(self, chosen: NDArray[np.int64]) -> dict[str, Floats]:
        """Each metric [...] of the decisions `chosen` [..., E]."""
        confidence, correct = self.confidence[chosen], self.correct[chosen]
        accuracy = correct.mean(-1)
        ece = expected_calibration_error(confidence, correct)
        return {
            "accuracy": accuracy,
            "mean_confidence": confidence.mean(-1),
            "ece": ece,
            "ece_15": expected_calibration_error(confidence, correct, num_bins=15),
            "ece_equal_mass": equal_mass_calibration_error(confidence, correct),
            "ece_smooth": smooth_calibration_error(confidence, correct),
            "mce": maximum_calibration_error(confidence, correct),
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


BLOCK = 2**22
"""Decisions resampled at a time: so many fit into memory."""


def _draws(size: int, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices [samples, size] with replacement, in blocks of samples."""
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // size)
    for start in range(0, samples, rows):
        yield generator.integers(size, size=(min(rows, samples - start), size))


def _draws_of_groups(
    groups: NDArray[np.int64], samples: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Indices of the members of as many groups as there are, drawn with replacement."""
    generator = np.random.default_rng(seed)
    ends = np.unique_counts(groups).counts.cumsum()
    members = np.split(groups.argsort(kind="stable"), ends[:-1])
    for _ in range(samples):
        yield np.concatenate(
            [members[i] for i in generator.integers(len(members), size=len(members))]
        )
