"""A cascade: the student answers what it is surest of, and passes the rest on to its teacher.

Legend: E questions, D distinct confidences, S samples of a bootstrap (firstkd/measure/bootstrap).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstkd.measure.bootstrap import Counts, Draws, Estimate, Statistic, resample
from firstkd.measure.ranking import Bools, Floats

LOSS = 0.01
"""Accuracy that a cascade may lose against the teacher in its headline figure."""


@dataclass(frozen=True)
class Deferral:
    """How a student and its teacher do on the same questions."""

    confidence: Floats
    """[E], the student's."""
    student_right: Bools
    teacher_right: Bools
    groups: NDArray[np.int64] | None = None
    """[E], the group that each is drawn with; None: each on its own."""

    def curve(self, counts: Counts | None = None) -> tuple[Floats, Floats]:
        """Return [S, D + 1] shares the student keeps, from 0 to 1, and the pair's accuracies.

        Questions of equal confidence are kept together or not at all.
        """
        counts = np.ones((1, len(self.confidence))) if counts is None else counts
        order = np.argsort(-self.confidence, kind="stable")
        sure = self.confidence[order]
        starts = np.flatnonzero(np.append(True, sure[1:] != sure[:-1]))
        size = counts.sum(-1, keepdims=True)
        gain = self.student_right.astype(np.float64) - self.teacher_right
        kept = np.add.reduceat(counts[:, order], starts, axis=-1).cumsum(-1)
        gained = np.add.reduceat((counts * gain)[:, order], starts, axis=-1).cumsum(-1)
        teacher = (counts * self.teacher_right).sum(-1, keepdims=True)
        return _from_0(kept) / size, (teacher + _from_0(gained)) / size

    def accuracy_at(self, kept: float, samples: int, seed: int) -> Estimate:
        """Return the pair's accuracy if the student keeps this share, with its interval."""

        def accuracy(counts: Counts) -> dict[str, Floats]:
            shares, accuracies = self.curve(counts)
            rows = zip(shares, accuracies, strict=True)
            return {"accuracy": np.array([np.interp(kept, *row) for row in rows])}

        return self._estimated(accuracy, "accuracy", samples, seed)

    def kept_share(self, samples: int, seed: int) -> Estimate:
        """Return the largest share kept at the teacher's accuracy less LOSS, with its interval."""

        def largest(counts: Counts) -> dict[str, Floats]:
            shares, accuracies = self.curve(counts)
            enough = accuracies >= accuracies[:, :1] - LOSS - 1e-9
            return {"kept": np.where(enough, shares, 0).max(-1)}

        return self._estimated(largest, "kept", samples, seed)

    def chance(self, kept: float) -> float:
        """Return the accuracy if the questions passed on are drawn at random."""
        both = self.student_right.mean(), self.teacher_right.mean()
        return float(kept * both[0] + (1 - kept) * both[1])

    def oracle(self, kept: float) -> float:
        """Return the accuracy if one knew the answers and passed on what gains most."""
        gain = np.sort(self.teacher_right.astype(np.float64) - self.student_right)[::-1]
        passed = (1 - kept) * len(gain)
        gained = np.interp(passed, np.arange(len(gain) + 1), np.append(0, gain.cumsum()))
        return float(self.student_right.mean() + gained / len(gain))

    def _estimated(self, statistic: Statistic, name: str, samples: int, seed: int) -> Estimate:
        draws = Draws.of(len(self.confidence), samples, seed, self.groups)
        return resample(statistic, draws)[name].estimate(0, 1)


def _from_0(sums: Floats) -> Floats:
    return np.pad(sums, ((0, 0), (1, 0)))
