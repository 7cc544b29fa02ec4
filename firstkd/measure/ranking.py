"""Whether a model is surer of its right answers than of its wrong ones.

A temperature hardly changes this. Decisions of equal confidence have no order: each counts as
the share of them that is right, so a model that is equally sure of everything gets its error rate
as AURC and an AUROC of ½.

Legend: E decisions, D distinct confidences, S samples of a bootstrap (firstkd/measure/bootstrap).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ranking:
    """Decisions by falling confidence: how many share each one, and how many are right."""

    drawn_SD: Floats
    right_SD: Floats

    @classmethod
    def of(cls, confidence: Floats, correct: Bools, counts: Floats | None = None) -> Self:
        """Rank decisions [E]; `counts` [S, E] says how often each of them was drawn."""
        counts = np.ones((1, len(confidence))) if counts is None else counts
        order = np.argsort(-confidence, kind="stable")
        in_order = confidence[order]
        starts = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1]))
        drawn = counts[:, order]
        right = np.add.reduceat(drawn * correct[order], starts, axis=-1)
        return cls(np.add.reduceat(drawn, starts, axis=-1), right)

    @property
    def size_S(self) -> Floats:
        return np.asarray(self.drawn_SD.sum(-1))

    @property
    def accuracy_S(self) -> Floats:
        return np.asarray(self.right_SD.sum(-1) / self.size_S)

    def auroc(self) -> Floats:
        """[S]: the chance that a right answer is surer than a wrong one, ties counting half.

        ½ if all answers are right, or all wrong: there is nothing to tell apart.
        """
        wrong_SD = self.drawn_SD - self.right_SD
        less_sure_SD = wrong_SD.sum(-1, keepdims=True) - wrong_SD.cumsum(-1)
        pairs = self.right_SD.sum(-1) * wrong_SD.sum(-1)
        won = (self.right_SD * (less_sure_SD + wrong_SD / 2)).sum(-1)
        return np.asarray(np.where(pairs > 0, won / np.maximum(pairs, 1), 0.5))

    def aurc(self) -> Floats:
        """[S]: the area under the risk–coverage curve (Geifman and El-Yaniv 2017).

        The mean, over all numbers of questions answered, of the share of them that is wrong.
        """
        wrong_SD = self.drawn_SD - self.right_SD
        ends_SD = self.drawn_SD.cumsum(-1).astype(np.int64)
        before_SD = ends_SD - self.drawn_SD.astype(np.int64)
        # sum over k = 1 … drawn of (wrong_before + rate · k) / (before + k)
        harmonic = _harmonic(int(self.size_S.max()))
        steps_SD = harmonic[ends_SD]
        del ends_SD  # millions of decisions take a lot of memory
        steps_SD -= harmonic[before_SD]
        rate_SD = wrong_SD / np.maximum(self.drawn_SD, 1)
        excess_SD = wrong_SD.cumsum(-1) - wrong_SD - rate_SD * before_SD
        return np.asarray((wrong_SD + excess_SD * steps_SD).sum(-1) / self.size_S)

    def excess_aurc(self) -> Floats:
        """[S]: AURC less that of an equally accurate model that is surer of all its right answers.

        (Geifman, Uziel and El-Yaniv 2019.) That model is wrong only beyond its r right answers: n
        times its AURC is the sum of (i − r) / i over i = r + 1 … n.
        """
        right, size, aurc = self.right_SD.sum(-1), self.size_S, self.aurc()
        harmonic = _harmonic(int(size.max()))
        steps = harmonic[size.astype(np.int64)] - harmonic[right.astype(np.int64)]
        return np.asarray(aurc - (size - right - right * steps) / size)

    def accuracy_at(self, coverage: float) -> Floats:
        """[S]: the accuracy on the surest questions, the fewest that make up this share of all."""
        answered = np.ceil(coverage * self.size_S - 1e-9)
        ends_SD = self.drawn_SD.cumsum(-1)
        last = (ends_SD < answered[:, None]).sum(-1)[:, None]
        drawn, right, end, right_by_end = (
            np.take_along_axis(values, last, -1)[:, 0]
            for values in (self.drawn_SD, self.right_SD, ends_SD, self.right_SD.cumsum(-1))
        )
        beyond = end - answered
        return np.asarray((right_by_end - beyond * right / np.maximum(drawn, 1)) / answered)


def _harmonic(size: int) -> Floats:
    """Return the harmonic numbers, sums of 1 / i, up to each of 0 … size."""
    return np.asarray(np.append(0.0, np.cumsum(1 / np.arange(1, size + 1))))


def coverage_curve(confidence: Floats, correct: Bools) -> tuple[Floats, Floats]:
    """Return coverage and accuracy [D] of a model that answers only its surest questions.

    (El-Yaniv and Wiener 2010.) One point for each distinct confidence, as the lowest answered.
    """
    ranking = Ranking.of(confidence, correct)
    answered = ranking.drawn_SD[0].cumsum()
    return answered / len(confidence), ranking.right_SD[0].cumsum() / answered
