"""`isotonic`: any rising function of the top candidate's confidence."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from firstkd.recalibration.base import Recalibration, TopAgainstRest, top_is_right
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class Isotonic(Recalibration):
    """Top-1 confidence by a rising piecewise linear function, the rest rescaled.

    Zadrozny and Elkan 2002; `accuracies` are interpolated between `confidences`.
    """

    confidences: list[float]
    accuracies: list[float]
    kind: ClassVar[str] = "isotonic"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        from sklearn.isotonic import IsotonicRegression

        confidence = knowledge.top_logprobs.exp().amax(-1).double().numpy()
        right = top_is_right(knowledge.top_logprobs, is_right_RK)
        # as close to certainty as this many decisions allow (Laplace's rule of succession)
        least = 1 / (len(right) + 2)
        fitted = IsotonicRegression(y_min=least, y_max=1 - least).fit(confidence, right)
        return cls(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist())

    def apply(self, knowledge: Knowledge) -> Tensor:
        top = TopAgainstRest.of(knowledge)
        confidence = np.interp(
            knowledge.top_logprobs.exp().amax(-1).double().numpy(),
            self.confidences,
            self.accuracies,
        )
        return top.with_confidence(torch.from_numpy(confidence).to(knowledge.top_logprobs.dtype))
