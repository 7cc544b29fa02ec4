"""From the confidence in an answer to the probability that it is right.

Recalibrations (firstkd/recalibration) of decisions with one candidate, the answer, and a tail for
everything else. A temperature leaves tails alone, so it needs everything else as a candidate.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firstkd.measure.ranking import Bools, Floats
from firstkd.open_text.settings import CalibrationName
from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.table import RECALIBRATIONS, from_json, to_json
from firstkd.signals.knowledge import Knowledge

LEAST = 1e-12
"""Probabilities are clipped this far from 0 and 1 before taking logarithms."""


def _alone(right_E2: Tensor) -> Knowledge:
    """Decisions [E, 1] on the answer; everything else is the tail."""
    both = Knowledge.of_choices(right_E2)
    return Knowledge(
        top_ids=both.top_ids[:, :1],
        top_logprobs=right_E2[:, :1],
        log_tail_mass=right_E2[:, 1],
        gold_logprob=both.gold_logprob,
        tail_bends=both.tail_bends,
        vocabulary_size=2,
    )


DECISIONS: dict[CalibrationName, Callable[[Tensor], Knowledge]] = {
    "temperature": Knowledge.of_choices,
    "platt": _alone,
    "isotonic": _alone,
}
"""Each makes decisions from the log-probabilities [E, 2] that the answer is right and wrong."""


class Calibration:
    """A non-decreasing map from confidence to probability, fitted on judged answers."""

    def __init__(self, kind: CalibrationName, fitted: Recalibration) -> None:
        self.kind, self.fitted = kind, fitted

    @classmethod
    def fit(
        cls,
        kind: CalibrationName,
        confidence_E: Floats,
        correct_E: Bools,
        settings: CalibrateSettings,
    ) -> "Calibration":
        knowledge = DECISIONS[kind](_log_odds(confidence_E))
        right_E = torch.from_numpy(np.asarray(correct_E))
        is_right = torch.stack([right_E, ~right_E], -1)[:, : knowledge.top_logprobs.shape[1]]
        return cls(kind, RECALIBRATIONS[kind].fit(knowledge, is_right, settings))

    def __call__(self, confidence_E: Floats) -> Floats:
        """Return the probabilities [E] that answers of this confidence are right."""
        found = self.fitted.apply(DECISIONS[self.kind](_log_odds(confidence_E)))
        return np.asarray(found[:, 0].double().numpy())

    def to_json(self) -> dict[str, Any]:
        return to_json(self.fitted)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Calibration":
        return cls(value["kind"], from_json(value))


def _log_odds(confidence_E: Floats) -> Tensor:
    """Return the log-probabilities [E, 2] of the answer and of everything else."""
    right = torch.from_numpy(np.clip(confidence_E.astype(np.float64), LEAST, 1 - LEAST))
    return torch.stack([right.log(), (-right).log1p()], -1)
