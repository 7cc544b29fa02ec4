"""Recalibrate the teacher's candidate probabilities, so that its confidence is honest.

Each recalibration is fitted on decisions of the calibration split and applied to [R, K]
log-probabilities. The tail mass stays what it was under all but `paper`, which as published gives
everything to the candidates.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from firstkd.errors import ArtifactError
from firstkd.metrics import expected_calibration_error
from firstkd.settings import CalibrateSettings


class Recalibration(Protocol):
    kind: ClassVar[str]

    @classmethod
    def fit(cls, logprobs_RK: Tensor, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        """Fit to candidates' log-probabilities and, per decision, True at the right one if any."""
        ...

    def apply(self, logprobs_RK: Tensor) -> Tensor:
        """Return probabilities [R, K]; a candidate of log-probability −inf stays at 0."""
        ...


@dataclass(frozen=True)
class Identity:
    """The teacher as it is: direct distillation."""

    kind: ClassVar[str] = "none"

    @classmethod
    def fit(cls, logprobs_RK: Tensor, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, logprobs_RK: Tensor) -> Tensor:
        return logprobs_RK.exp()


@dataclass(frozen=True)
class Temperature:
    """p'(i) = S · softmax_i(log p / T) with S the candidates' mass (Guo et al. 2017, sec. 4.2)."""

    temperature: float
    kind: ClassVar[str] = "temperature"

    @classmethod
    def fit(cls, logprobs_RK: Tensor, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        def negative_log_likelihood(temperature: float) -> float:
            return candidate_nll(cls(temperature).apply(logprobs_RK), is_right_RK)

        def calibration_error(temperature: float) -> float:
            return _ece(cls(temperature).apply(logprobs_RK), is_right_RK)

        objective = negative_log_likelihood if settings.criterion == "nll" else calibration_error
        return cls(minimise_over_log(objective, settings.max_temperature))

    def apply(self, logprobs_RK: Tensor) -> Tensor:
        mass = logprobs_RK.exp().sum(-1, keepdim=True)
        return mass * (logprobs_RK / self.temperature).softmax(-1)


@dataclass(frozen=True)
class Paper:
    """FIRST as published: softmax over the probabilities (not their logarithms) divided by c.

    Its confidence is at most e^{1/c} / (e^{1/c} + K − 1), and no c is the identity.
    """

    c: float
    kind: ClassVar[str] = "paper"

    @classmethod
    def fit(cls, logprobs_RK: Tensor, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        def best(grid: np.ndarray) -> float:
            errors = [_ece(cls(c).apply(logprobs_RK), is_right_RK) for c in grid]
            return float(grid[int(np.argmin(errors))])

        coarse = best(np.arange(1, 11) / 10)
        return cls(best(np.clip(coarse + np.arange(-5, 6) / 50, 0.02, 1.0)))

    def apply(self, logprobs_RK: Tensor) -> Tensor:
        exists = torch.isfinite(logprobs_RK)
        return (logprobs_RK.exp() / self.c).masked_fill(~exists, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class LabelSmoothing:
    """The top candidate gives up `delta` of its probability to the others, in equal parts."""

    delta: float = 0.1
    kind: ClassVar[str] = "label_smoothing"

    @classmethod
    def fit(cls, logprobs_RK: Tensor, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, logprobs_RK: Tensor) -> Tensor:
        probabilities = logprobs_RK.exp()
        exists = torch.isfinite(logprobs_RK)
        others = (exists.sum(-1, keepdim=True) - 1).clamp_min(1)
        top = probabilities.argmax(-1, keepdim=True)
        given = probabilities.gather(-1, top).clamp_max(self.delta)
        smoothed = (probabilities + given / others).masked_fill(~exists, 0.0)
        return smoothed.scatter_add(-1, top, -given - given / others)


RECALIBRATIONS: dict[str, type[Recalibration]] = {
    r.kind: r for r in (Identity, Temperature, Paper, LabelSmoothing)
}


def to_json(recalibration: Recalibration) -> dict[str, Any]:
    return {"kind": recalibration.kind, **asdict(recalibration)}  # type: ignore[call-overload]


def from_json(value: dict[str, Any]) -> Recalibration:
    """Raises ArtifactError for a kind that does not exist."""
    parameters = {name: number for name, number in value.items() if name != "kind"}
    try:
        return RECALIBRATIONS[value["kind"]](**parameters)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{value} is no recalibration; run the calibrate stage again"
        ) from error


def candidate_nll(probabilities_RK: Tensor, is_right_RK: Tensor) -> float:
    """Mean negative log-likelihood of the right candidates; decisions without one are left out.

    What is right but outside the top-k keeps its probability under every recalibration that leaves
    the tail alone, so it cannot tell them apart.
    """
    probability = (probabilities_RK * is_right_RK).sum(-1)[is_right_RK.any(-1)]
    return float(-probability.double().clamp_min(1e-30).log().mean())


def minimise_over_log(function: Callable[[float], float], upper: float) -> float:
    """Argmin over [1/upper, upper] by a bounded scalar search in the logarithm."""
    bound = math.log(upper)
    result = minimize_scalar(
        lambda log: function(math.exp(log)), bounds=(-bound, bound), method="bounded"
    )
    return math.exp(float(result.x))


def _ece(probabilities_RK: Tensor, is_right_RK: Tensor) -> float:
    confidence, top = probabilities_RK.max(-1)
    correct = is_right_RK.gather(-1, top[:, None])[:, 0]
    return float(expected_calibration_error(confidence.numpy(), correct.numpy()))
