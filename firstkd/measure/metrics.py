"""How good a model is, and how honest: its decisions' accuracy, calibration and ranking.

Legend: E decisions, K candidates, G bins, S samples of a bootstrap. Every metric takes counts
[S, E], how often each decision was drawn, so that a bootstrap (firstkd/measure/bootstrap.py) is one
call; without counts each decision counts once, and S is 1.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.special import softmax

from firstkd.measure.ranking import Ranking

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

METRICS = (
    "accuracy",
    "mean_confidence",
    "nll",
    "brier",
    "auroc",
    "aurc",
    "excess_aurc",
    "accuracy_at_25",
    "accuracy_at_50",
    "accuracy_at_75",
    "ece",
    "ece_15",
    "ece_equal_mass",
    "ece_smooth",
    "mce",
    "trust",
)
"""Every metric; docs/method.md defines them."""


@dataclass(frozen=True)
class Bins:
    """A reliability diagram's numbers, [G] each; empty bins have mean 0."""

    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def reliability_bins(confidence: Floats, correct: Bools, num_bins: int = 10) -> Bins:
    """Return equal-width bins of confidence, (i/G, (i+1)/G] (Guo et al. 2017, sec. 2)."""
    bin_of = _bin_of(confidence, num_bins)
    count = np.bincount(bin_of, minlength=num_bins)
    filled = np.maximum(count, 1)
    return Bins(
        count=count,
        confidence=np.bincount(bin_of, confidence, num_bins) / filled,
        accuracy=np.bincount(bin_of, correct, num_bins) / filled,
    )


def expected_calibration_error(
    confidence: Floats, correct: Bools, num_bins: int = 10, counts: Floats | None = None
) -> Floats:
    """[S]: mean over decisions of their bin's |accuracy − confidence| (Guo et al. 2017, eq. 3)."""
    counts = _each_once(confidence) if counts is None else counts
    gaps = _sums_by(_bin_of(confidence, num_bins), correct - confidence, counts)
    return np.asarray(np.abs(gaps).sum(-1) / counts.sum(-1))


def maximum_calibration_error(
    confidence: Floats, correct: Bools, num_bins: int = 10, counts: Floats | None = None
) -> Floats:
    """[S]: |accuracy − confidence| of the worst bin (Guo et al. 2017, eq. 5)."""
    counts = _each_once(confidence) if counts is None else counts
    bin_of = _bin_of(confidence, num_bins)
    drawn = _sums_by(bin_of, np.ones_like(confidence), counts)
    gaps = _sums_by(bin_of, correct - confidence, counts)
    return np.asarray(np.abs(gaps / np.maximum(drawn, 1)).max(-1))


def equal_mass_calibration_error(
    confidence: Floats, correct: Bools, num_bins: int = 10, counts: Floats | None = None
) -> Floats:
    """[S]: ECE with equally many decisions per bin, give or take one (Nixon et al. 2019)."""
    counts = _each_once(confidence) if counts is None else counts
    order = confidence.argsort(kind="stable")
    drawn = counts[:, order]
    ends, sums = _sums_from_0(drawn), _sums_from_0(drawn * (correct - confidence)[order])
    size = ends[:, -1]
    edges = np.ceil(np.arange(num_bins + 1) * size[:, None] / num_bins)
    # within one decision drawn several times, the sum of the gaps grows evenly
    by_edge = [np.interp(*row) for row in zip(edges, ends, sums, strict=True)]
    return np.asarray(np.abs(np.diff(by_edge, axis=-1)).sum(-1) / size)


def smooth_calibration_error(
    confidence: Floats, correct: Bools, mesh: int = 512, counts: Floats | None = None
) -> Floats:
    """[S]: smECE, with a Gaussian as wide as the error, not bins (Błasiok and Nakkiran 2023).

    Smoothing with a Gaussian reflected at 0 and 1 multiplies the residuals' cosine transform, so
    all bootstrap samples are smoothed at once, each at its own width.
    """
    counts = _each_once(confidence) if counts is None else counts
    cell = np.minimum(confidence * mesh, mesh - 1).astype(np.int16)
    filled, place = np.unique(cell, return_inverse=True)
    residual = np.zeros((len(counts), mesh))
    residual[:, filled] = _sums_by(place, correct - confidence, counts)
    spectrum = dct(residual / counts.sum(-1, keepdims=True), norm="ortho")
    frequency = np.pi * np.arange(mesh)

    def error_at(width: Floats) -> Floats:
        smoothed = spectrum * np.exp(-np.square(frequency * width[..., None]) / 2)
        return np.asarray(np.abs(idct(smoothed, norm="ortho")).sum(-1))

    low, high = np.zeros(len(counts)), np.ones(len(counts))
    for _ in range(10):  # halvings, to 0.001 as in the authors' code
        middle = (low + high) / 2
        too_narrow = middle < error_at(middle)
        low, high = np.where(too_narrow, middle, low), np.where(too_narrow, high, middle)
    return error_at(high)


def _each_once(confidence: Floats) -> Floats:
    return np.ones((1, len(confidence)))


def _bin_of(confidence: Floats, num_bins: int) -> NDArray[np.int16]:
    bins = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1)
    return np.asarray(bins, np.int16)


def _sums_by(bin_of: NDArray[np.integer], values: Floats, counts: Floats) -> Floats:
    """[S, filled bins]: sums of values [E], each counted as often as it was drawn."""
    order = bin_of.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(bin_of[order], prepend=-1))
    return np.asarray(np.add.reduceat(counts[:, order] * values[order], starts, axis=-1))


def _sums_from_0(values: Floats) -> Floats:
    """[S, E + 1]: the sums of the first 0 … E values."""
    return np.pad(values, ((0, 0), (1, 0))).cumsum(-1)


@dataclass(frozen=True)
class Predictions:
    """What is measured about E decisions, 29 bytes each: five columns [E]."""

    predicted_index: NDArray[np.int32]
    """The most probable candidate."""
    confidence: Floats
    """Its probability."""
    correct: Bools
    gold_probability: Floats
    """Probability of the right answer, candidate or not; summed if several are right."""
    squared_error: Floats
    """Brier scores, with the tail as one more candidate and all right ones as one."""

    @classmethod
    def of(cls, probabilities: Floats, is_right: Bools, gold_probability: Floats) -> Self:
        """From candidates' probabilities [E, K], 0 for missing ones; the rest up to 1 is the tail.

        A row of `is_right` [E, K] is all false if the right answer is in the tail.
        """
        predicted = probabilities.argmax(-1).astype(np.int32)
        correct = np.take_along_axis(is_right, predicted[:, None], -1)[:, 0]
        tail = 1 - probabilities.sum(-1)
        tail_is_right = ~is_right.any(-1)
        right = (probabilities * is_right).sum(-1)
        wrong = np.square(probabilities * ~is_right).sum(-1)
        error = wrong + np.square(right - ~tail_is_right) + np.square(tail - tail_is_right)
        return cls(predicted, probabilities.max(-1), correct, gold_probability, error)

    @classmethod
    def of_choices(cls, scores: Floats, is_right: Bools) -> Self:
        """From choice scores [E, C] (−inf for missing choices) by softmax.

        Several choices are right if their texts are the same: each gives the right answer.
        """
        probabilities = softmax(scores.astype(np.float64), axis=-1)
        return cls.of(probabilities, is_right, (probabilities * is_right).sum(-1))

    @classmethod
    def of_answer_tokens(cls, logprobs: Floats, is_right: Bools) -> Self:
        """From one-token answers' log-probabilities [E, C] over the vocabulary.

        The published evaluation reads confidence this way: other tokens keep their share.
        """
        probabilities = np.exp(logprobs.astype(np.float64))
        return cls.of(probabilities, is_right, (probabilities * is_right).sum(-1))

    @classmethod
    def of_answers(cls, sure: Floats, correct: Bools) -> Self:
        """From the confidence `sure` [E] in open-text answers; all other answers are the tail."""
        return cls.of(sure[:, None], correct[:, None], np.where(correct, sure, 1 - sure))

    @classmethod
    def concatenate(cls, parts: Iterable[Self]) -> Self:
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def __getitem__(self, rows: NDArray[np.int64]) -> Self:
        return type(self)(*(column[rows] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.gold_probability)

    @property
    def negative_log_likelihood(self) -> Floats:
        return np.asarray(-np.log(np.maximum(self.gold_probability, 1e-30)))

    def values(self) -> dict[str, float]:
        """Each metric's value."""
        found = self.metrics(_each_once(self.confidence))
        return {name: float(value[0]) for name, value in found.items()}

    def metrics(self, counts: Floats, names: Collection[str] = METRICS) -> dict[str, Floats]:
        """Return metrics [S] of the decisions, each drawn as often as `counts` [S, E] says."""
        both = self.confidence, self.correct
        ranking = Ranking.of(*both, counts)

        def mean(values: Floats) -> Floats:
            return np.asarray((counts * values).sum(-1) / ranking.size_S)

        def ece(num_bins: int = 10) -> Floats:
            return expected_calibration_error(*both, num_bins, counts)

        every: dict[str, Callable[[], Floats]] = {
            "accuracy": lambda: ranking.accuracy_S,
            "mean_confidence": lambda: mean(self.confidence),
            "nll": lambda: mean(self.negative_log_likelihood),
            "brier": lambda: mean(self.squared_error),
            "auroc": ranking.auroc,
            "aurc": ranking.aurc,
            "excess_aurc": ranking.excess_aurc,
            "accuracy_at_25": lambda: ranking.accuracy_at(0.25),
            "accuracy_at_50": lambda: ranking.accuracy_at(0.5),
            "accuracy_at_75": lambda: ranking.accuracy_at(0.75),
            "ece": ece,
            "ece_15": lambda: ece(15),
            "ece_equal_mass": lambda: equal_mass_calibration_error(*both, counts=counts),
            "ece_smooth": lambda: smooth_calibration_error(*both, counts=counts),
            "mce": lambda: maximum_calibration_error(*both, counts=counts),
            # our own summary in one number: accuracy less what the confidence misstates
            "trust": lambda: ranking.accuracy_S - ece(),
        }
        return {name: every[name]() for name in names}
