"""The interface of recalibrations, and what several of them share.

A recalibration is fitted on decisions of the calibration split and gives the candidates of R
decisions new probabilities [R, K]; the remainder to 1 belongs to the tail.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from firstkd.measure.metrics import Bools
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge


class Recalibration(ABC):
    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(
        cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings
    ) -> "Recalibration":
        """Fit to decisions; `is_right_RK` is True at the right candidates, if there are any."""

    @abstractmethod
    def apply(self, knowledge: Knowledge) -> Tensor:
        """Return probabilities [R, K]; a candidate of log-probability −inf stays at 0."""

    @classmethod
    def supports(cls, knowledge: Knowledge) -> bool:
        """Whether these decisions were stored in enough detail."""
        return True

    def gold_probability(self, knowledge: Knowledge, is_right_RK: Tensor) -> Tensor:
        """Return [R], the probability of the right answer, candidate or not."""
        probabilities_RK = self.apply(knowledge)
        of_candidates = (probabilities_RK * is_right_RK).sum(-1)
        # a right answer outside the candidates keeps its share of the mass left to the tail
        share = knowledge.gold_logprob.exp() / knowledge.tail_mass.clamp_min(1e-6)
        of_tail = share.clamp_max(1.0) * (1 - probabilities_RK.sum(-1)).clamp_min(0)
        return torch.where(is_right_RK.any(-1), of_candidates, of_tail)

    def at_bound(self, settings: CalibrateSettings) -> float | None:
        """Return the parameter if it is a bound of its search, so the best may lie beyond."""
        return None


def top_is_right(scores_RK: Tensor, is_right_RK: Tensor) -> Bools:
    """Return [R]: whether the most probable candidate is right."""
    right: Bools = is_right_RK.gather(-1, scores_RK.argmax(-1, keepdim=True))[:, 0].numpy()
    return right


@dataclass(frozen=True)
class TopAgainstRest:
    """Decisions as one against all: the most probable candidate against everything else."""

    top_R1: Tensor
    """Index of the most probable candidate."""
    others_RK: Tensor
    """Log-probabilities of the other candidates, −inf at the top one."""
    log_rest_R: Tensor
    """Log-probability of the other candidates and the tail together."""
    log_odds_R: Tensor
    """Top against rest, kept finite."""

    @classmethod
    def of(cls, knowledge: Knowledge) -> Self:
        log_top_R1, top_R1 = knowledge.top_logprobs.max(-1, keepdim=True)
        others_RK = knowledge.top_logprobs.scatter(-1, top_R1, -torch.inf)
        # not 1 − top, which is only rounding near certainty
        log_rest_R = torch.logaddexp(others_RK.logsumexp(-1), knowledge.log_tail_mass)
        log_odds_R = (log_top_R1[:, 0] - log_rest_R).clamp(-30, 30)
        return cls(top_R1, others_RK, log_rest_R, log_odds_R)

    def with_confidence(self, confidence_R: Tensor) -> Tensor:
        """Return probabilities [R, K]: this for the top, the rest in proportion as before.

        If this confidence is low, another candidate may become the most probable.
        """
        log_rest_R1 = self.log_rest_R.clamp_min(torch.finfo(self.log_rest_R.dtype).min)[:, None]
        shared = (self.others_RK - log_rest_R1).exp() * (1 - confidence_R)[:, None]
        return shared.scatter(-1, self.top_R1, confidence_R[:, None])
