"""`vocabulary_temperature`: softmax of the whole vocabulary's logits at a temperature."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.search import loss, minimise_over_log
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.temperature import Temperature
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.tail import TEMPERATURES, log_sum_of_powers, temper


@dataclass(frozen=True)
class VocabularyTemperature(Recalibration):
    """p'(i) = p(i)^(1/T) / Σ p^(1/T) over the whole vocabulary.

    For open text, where T is near 1; on one answer's tokens it pours mass into the tail. The tail's
    sum at other T follows from its bends. Decisions without a tail are tempered as by
    `Temperature`.
    """

    temperature: float
    kind: ClassVar[str] = "vocabulary_temperature"

    @classmethod
    def fit(
        cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings
    ) -> Recalibration:
        if not _has_tail(knowledge):
            return Temperature.fit(knowledge, is_right_RK, settings)
        once = np.ones((1, len(knowledge)))

        def loss_at(temperature: float) -> float:
            """Loss over every decision: a right token in the tail is tempered, too."""
            tempered = cls(temperature)
            gold_R = tempered.gold_probability(knowledge, is_right_RK)
            probabilities_RK = tempered.apply(knowledge)
            found = loss(settings.criterion, probabilities_RK, gold_R, is_right_RK, once)
            return float(found[0])

        return cls(minimise_over_log(loss_at, *TEMPERATURES))

    @classmethod
    def supports(cls, knowledge: Knowledge) -> bool:
        """Whether the tail is empty, or more than its mass was stored."""
        return not _has_tail(knowledge) or knowledge.tail_bends.shape[1] > 0

    def apply(self, knowledge: Knowledge) -> Tensor:
        return temper(knowledge, self.temperature)

    def gold_probability(self, knowledge: Knowledge, is_right_RK: Tensor) -> Tensor:
        """Return [R], exact even for a right token in the tail."""
        log_partition = log_sum_of_powers(knowledge, self.temperature)
        return (knowledge.gold_logprob / self.temperature - log_partition).exp()

    def at_bound(self, settings: CalibrateSettings) -> float | None:
        return self.temperature if self.temperature in TEMPERATURES else None


def _has_tail(knowledge: Knowledge) -> bool:
    return knowledge.vocabulary_size > knowledge.top_ids.shape[1]
