"""`label_smoothing`: move a fixed amount of probability from the top candidate to the others."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class LabelSmoothing(Recalibration):
    """The top candidate gives a probability of `delta` to the others, in equal parts.

    The tail keeps its mass.
    """

    delta: float = 0.1
    kind: ClassVar[str] = "label_smoothing"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, knowledge: Knowledge) -> Tensor:
        probabilities = knowledge.top_logprobs.exp()
        exists = torch.isfinite(knowledge.top_logprobs)
        others = exists.sum(-1, keepdim=True) - 1
        top = probabilities.argmax(-1, keepdim=True)
        given = probabilities.gather(-1, top).clamp_max(self.delta).masked_fill(others == 0, 0.0)
        others = others.clamp_min(1)
        smoothed = (probabilities + given / others).masked_fill(~exists, 0.0)
        return smoothed.scatter_add(-1, top, -given - given / others)
