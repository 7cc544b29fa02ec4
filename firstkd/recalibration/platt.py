"""`platt`: a logistic function of the top candidate's log-odds."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from firstkd.recalibration.base import Recalibration, TopAgainstRest, top_is_right
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class Platt(Recalibration):
    """Top-1 confidence σ(slope · logit c + intercept), the rest rescaled (Platt 1999).

    The slope is at least 0: a calibration must not reverse the order of answers.
    """

    slope: float
    intercept: float
    kind: ClassVar[str] = "platt"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        from sklearn.linear_model import LogisticRegression  # takes a second; only fitting needs it

        odds = TopAgainstRest.of(knowledge).log_odds_R.double().numpy()
        right = top_is_right(knowledge.top_logprobs, is_right_RK)
        # Platt's own targets instead of 0 and 1: finite even if all or none are right
        positive, negative = right.sum(), (~right).sum()
        target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
        fitted = LogisticRegression(C=np.inf).fit(
            np.concatenate([odds, odds])[:, None],
            np.repeat([1, 0], len(odds)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        if slope < 0:  # by chance, on few decisions; it would rank the least sure answers first
            share = target.mean()
            slope, intercept = 0.0, float(np.log(share / (1 - share)))
        return cls(slope, intercept)

    def apply(self, knowledge: Knowledge) -> Tensor:
        top = TopAgainstRest.of(knowledge)
        return top.with_confidence((self.slope * top.log_odds_R + self.intercept).sigmoid())
