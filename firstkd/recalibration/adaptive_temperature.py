"""`adaptive_temperature`: a temperature for each decision, set by how undecided it looks."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from firstkd.measure.bootstrap import Floats
from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge

SPREADS = (0.0, 0.1, 0.3, 1.0)
"""Prior standard deviations to try for the slopes; 0 means a single temperature."""
FOLDS = 5
FARTHEST = 3.0
"""Features are clipped at this many standard deviations from the mean: a teacher is surer on
questions that it has learned than on any that this is fitted to."""


@dataclass(frozen=True)
class AdaptiveTemperature(Recalibration):
    """p'(i) = S · softmax_i(log p / T), log T = a + b · entropy + c · margin.

    After Balanya et al. 2024 (arXiv 2208.00461), who use the entropy. The slopes have a normal
    prior around 0 whose width is chosen by cross-validation, so that too few decisions to show
    differences give a single temperature.
    """

    intercept: float
    slopes: list[float]
    """For entropy and margin, each in standard deviations from its mean."""
    means: list[float]
    deviations: list[float]
    max_temperature: float
    """Largest T; the smallest is its inverse."""
    kind: ClassVar[str] = "adaptive_temperature"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        """Minimise NLL, whatever `settings.criterion` is: a binned error has no gradient."""
        features_RF = features(knowledge)
        means_F, deviations_F = features_RF.mean(0), features_RF.std(0, unbiased=False)
        scaling = means_F.tolist(), deviations_F.tolist(), settings.max_temperature
        data = _Data.of(cls(0.0, [0.0, 0.0], *scaling), knowledge, is_right_RK)
        fold_R = torch.arange(len(data)) * FOLDS // max(1, len(data))  # splits few texts

        def unseen(spread: float) -> float:
            """Return the NLL of each fold after fitting to the others."""
            parts = [(data[fold_R != fold], data[fold_R == fold]) for fold in range(FOLDS)]
            return sum(these.nll(others.fitted(spread))[0] for others, these in parts)

        intercept, *slopes = data.fitted(min(SPREADS, key=unseen)).tolist()
        return cls(intercept, slopes, *scaling)

    def apply(self, knowledge: Knowledge) -> Tensor:
        temperature_R1 = self.temperatures(knowledge)[:, None].to(knowledge.top_logprobs.dtype)
        mass_R1 = knowledge.top_logprobs.exp().sum(-1, keepdim=True)
        return mass_R1 * (knowledge.top_logprobs / temperature_R1).softmax(-1)

    def temperatures(self, knowledge: Knowledge) -> Tensor:
        """Return T of each decision [R]."""
        slopes_F = torch.tensor(self.slopes, dtype=torch.float64)
        log_temperature_R = self.intercept + self.standardised(knowledge) @ slopes_F
        bound = math.log(self.max_temperature)
        return log_temperature_R.clamp(-bound, bound).exp()

    def standardised(self, knowledge: Knowledge) -> Tensor:
        means_F, deviations_F = (
            torch.tensor(values, dtype=torch.float64) for values in (self.means, self.deviations)
        )
        scaled_RF = (features(knowledge) - means_F) / deviations_F.clamp_min(1e-6)
        return scaled_RF.clamp(-FARTHEST, FARTHEST)


def features(knowledge: Knowledge) -> Tensor:
    """Return [R, 2] in float64: entropy over its maximum, and log-odds margin of the two best."""
    logprobs_RK = knowledge.top_logprobs.double().log_softmax(-1)
    count_R = torch.isfinite(logprobs_RK).sum(-1)
    entropy_R = -torch.xlogy(logprobs_RK.exp(), logprobs_RK.exp()).sum(-1)
    if logprobs_RK.shape[1] == 1:
        return torch.zeros(len(logprobs_RK), 2, dtype=torch.float64)
    best_R2 = logprobs_RK.topk(2).values
    margin_R = (best_R2[:, 0] - best_R2[:, 1]).clamp_max(30)
    return torch.stack([entropy_R / count_R.clamp_min(2).log(), margin_R], dim=-1)


@dataclass(frozen=True)
class _Data:
    """The decisions that inform the temperature: those with a right candidate."""

    logprobs_RK: Tensor
    is_right_RK: Tensor
    inputs_RF: Tensor
    """1, and the standardised features."""
    bound: float
    """Largest |log T|."""

    @classmethod
    def of(cls, start: AdaptiveTemperature, knowledge: Knowledge, is_right_RK: Tensor) -> Self:
        says = is_right_RK.any(-1)
        features_RF = start.standardised(knowledge)[says]
        inputs_RF = torch.nn.functional.pad(features_RF, (1, 0), value=1.0)
        logprobs_RK = knowledge.top_logprobs.double()[says]
        bound = math.log(start.max_temperature)
        return cls(logprobs_RK, is_right_RK[says], inputs_RF, bound)

    def __len__(self) -> int:
        return len(self.logprobs_RK)

    def __getitem__(self, rows: Tensor) -> Self:
        logprobs_RK, is_right_RK = self.logprobs_RK[rows], self.is_right_RK[rows]
        return type(self)(logprobs_RK, is_right_RK, self.inputs_RF[rows], self.bound)

    def nll(self, coefficients_F: Floats) -> tuple[float, Floats]:
        """Return the summed negative log-likelihood and its gradient."""
        theta_F = torch.tensor(coefficients_F, requires_grad=True)
        log_temperature_R = (self.inputs_RF @ theta_F).clamp(-self.bound, self.bound)
        exists_RK = torch.isfinite(self.logprobs_RK)
        logits_RK = self.logprobs_RK.masked_fill(~exists_RK, 0.0) / log_temperature_R.exp()[:, None]
        logits_RK = logits_RK.masked_fill(~exists_RK, -torch.inf)
        right_R = logits_RK.masked_fill(~self.is_right_RK, -torch.inf).logsumexp(-1)
        loss = (logits_RK.logsumexp(-1) - right_R).sum()
        (gradient_F,) = torch.autograd.grad(loss, theta_F)
        return float(loss.detach()), gradient_F.numpy()

    def fitted(self, spread: float) -> Floats:
        """Return the most probable intercept and slopes under a prior of this spread."""
        free_F = np.array([1.0, *[float(spread > 0)] * (self.inputs_RF.shape[1] - 1)])
        precision_F = np.array([0.0, *[1 / max(spread, 1.0e-9) ** 2] * (len(free_F) - 1)]) * free_F

        def loss(coefficients_F: Floats) -> tuple[float, Floats]:
            value, gradient_F = self.nll(coefficients_F)
            penalty = float(precision_F @ coefficients_F**2) / 2
            return value + penalty, (gradient_F + precision_F * coefficients_F) * free_F

        found = minimize(loss, np.zeros(len(free_F)), jac=True, method="L-BFGS-B")
        return np.asarray(found.x)
