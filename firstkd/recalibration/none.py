"""`none`: the raw teacher."""

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


@dataclass(frozen=True)
class Identity(Recalibration):
    """Direct distillation."""

    kind: ClassVar[str] = "none"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, knowledge: Knowledge) -> Tensor:
        return knowledge.top_logprobs.exp()
