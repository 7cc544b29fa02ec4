"""`paper`: FIRST as published."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from firstkd.measure.metrics import expected_calibration_error
from firstkd.recalibration.base import Recalibration, top_is_right
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class Paper(Recalibration):
    """Softmax over the probabilities (not their logarithms) divided by c.

    All mass goes to the candidates. The confidence is at most e^{1/c} / (e^{1/c} + K − 1), and no c
    gives the identity.
    """

    c: float
    kind: ClassVar[str] = "paper"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        def error(c: float) -> float:
            after_RK = cls(c).apply(knowledge)
            correct = top_is_right(after_RK, is_right_RK)
            return float(expected_calibration_error(after_RK.amax(-1).double().numpy(), correct)[0])

        def best(grid: np.ndarray) -> float:
            return float(grid[int(np.argmin([error(float(c)) for c in grid]))])

        coarse = best(np.arange(1, 11) / 10)
        return cls(best(np.clip(coarse + np.arange(-5, 6) / 50, 0.02, 1.0)))

    def apply(self, knowledge: Knowledge) -> Tensor:
        exists = torch.isfinite(knowledge.top_logprobs)
        return (knowledge.top_logprobs.exp() / self.c).masked_fill(~exists, -torch.inf).softmax(-1)
