"""Recalibrate the teacher's candidate probabilities, so that its confidence is honest.

Each recalibration is fitted on decisions of the calibration split and gives the candidates of R
decisions new probabilities [R, K]; what they lack to 1 is the tail's. `temperature` and
`label_smoothing` leave the tail as it was, `vocabulary_temperature` tempers it, `platt` and
`isotonic` rescale it with the others, and `paper`, as published, gives everything to the
candidates.
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
from firstkd.measure.metrics import Bools, expected_calibration_error
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.tail import TEMPERATURES, log_sum_of_powers, temper


class Recalibration(Protocol):
    kind: ClassVar[str]

    @classmethod
    def fit(
        cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings
    ) -> "Recalibration":
        """Fit to decisions and [R, K], True at the right candidate if there is one."""
        ...

    def apply(self, knowledge: Knowledge) -> Tensor:
        """Return probabilities [R, K]; a candidate of log-probability −inf stays at 0."""
        ...


@dataclass(frozen=True)
class Identity:
    """The teacher as it is: direct distillation."""

    kind: ClassVar[str] = "none"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, knowledge: Knowledge) -> Tensor:
        return knowledge.top_logprobs.exp()


@dataclass(frozen=True)
class Temperature:
    """p'(i) = S · softmax_i(log p / T) with S the candidates' mass (Guo et al. 2017, sec. 4.2)."""

    temperature: float
    kind: ClassVar[str] = "temperature"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        def negative_log_likelihood(temperature: float) -> float:
            return candidate_nll(cls(temperature).apply(knowledge), is_right_RK)

        def calibration_error(temperature: float) -> float:
            return _ece(cls(temperature).apply(knowledge), is_right_RK)

        objective = negative_log_likelihood if settings.criterion == "nll" else calibration_error
        return cls(
            minimise_over_log(objective, 1 / settings.max_temperature, settings.max_temperature)
        )

    def apply(self, knowledge: Knowledge) -> Tensor:
        mass = knowledge.top_logprobs.exp().sum(-1, keepdim=True)
        return mass * (knowledge.top_logprobs / self.temperature).softmax(-1)


@dataclass(frozen=True)
class VocabularyTemperature:
    """p'(i) = p(i)^(1/T) / Σ p^(1/T) over the whole vocabulary: softmax of the logits over T.

    For open text, where T is near 1; on one answer's tokens it pours mass into the tail. What the
    tail's sum becomes at other T is known from its bends. Decisions without a tail are tempered as
    by `Temperature`.
    """

    temperature: float
    kind: ClassVar[str] = "vocabulary_temperature"

    @classmethod
    def fit(
        cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings
    ) -> "VocabularyTemperature | Temperature":
        if knowledge.vocabulary_size == knowledge.top_ids.shape[1]:
            return Temperature.fit(knowledge, is_right_RK, settings)

        def negative_log_likelihood(temperature: float) -> float:
            """Of every decision: what is right but in the tail can be tempered, too."""
            gold = cls(temperature).gold_probability(knowledge)
            return -float(gold.double().clamp_min(1e-30).log().mean())

        def calibration_error(temperature: float) -> float:
            return _ece(cls(temperature).apply(knowledge), is_right_RK)

        objective = negative_log_likelihood if settings.criterion == "nll" else calibration_error
        return cls(minimise_over_log(objective, *TEMPERATURES))

    def apply(self, knowledge: Knowledge) -> Tensor:
        return temper(knowledge, self.temperature)

    def gold_probability(self, knowledge: Knowledge) -> Tensor:
        """Return [R], exactly even of what is right but in the tail."""
        log_partition = log_sum_of_powers(knowledge, self.temperature)
        return (knowledge.gold_logprob / self.temperature - log_partition).exp()


@dataclass(frozen=True)
class Paper:
    """FIRST as published: softmax over the probabilities (not their logarithms) divided by c.

    Its confidence is at most e^{1/c} / (e^{1/c} + K − 1), and no c is the identity.
    """

    c: float
    kind: ClassVar[str] = "paper"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        def best(grid: np.ndarray) -> float:
            errors = [_ece(cls(c).apply(knowledge), is_right_RK) for c in grid]
            return float(grid[int(np.argmin(errors))])

        coarse = best(np.arange(1, 11) / 10)
        return cls(best(np.clip(coarse + np.arange(-5, 6) / 50, 0.02, 1.0)))

    def apply(self, knowledge: Knowledge) -> Tensor:
        exists = torch.isfinite(knowledge.top_logprobs)
        return (knowledge.top_logprobs.exp() / self.c).masked_fill(~exists, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class LabelSmoothing:
    """The top candidate gives up `delta` of its probability to the others, in equal parts."""

    delta: float = 0.1
    kind: ClassVar[str] = "label_smoothing"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        return cls()

    def apply(self, knowledge: Knowledge) -> Tensor:
        probabilities = knowledge.top_logprobs.exp()
        exists = torch.isfinite(knowledge.top_logprobs)
        others = (exists.sum(-1, keepdim=True) - 1).clamp_min(1)
        top = probabilities.argmax(-1, keepdim=True)
        given = probabilities.gather(-1, top).clamp_max(self.delta)
        smoothed = (probabilities + given / others).masked_fill(~exists, 0.0)
        return smoothed.scatter_add(-1, top, -given - given / others)


@dataclass(frozen=True)
class Platt:
    """Top-1 confidence σ(slope · logit c + intercept), the rest rescaled (Platt 1999)."""

    slope: float
    intercept: float
    kind: ClassVar[str] = "platt"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        from sklearn.linear_model import LogisticRegression  # a second, for those who fit alone

        odds = TopAgainstRest.of(knowledge).log_odds_R.double().numpy()
        right = _top_is_right(knowledge.top_logprobs, is_right_RK)
        # Platt's own targets instead of 0 and 1: finite even where all or none are right
        positive, negative = right.sum(), (~right).sum()
        target = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
        fitted = LogisticRegression(C=np.inf).fit(
            np.concatenate([odds, odds])[:, None],
            np.repeat([1, 0], len(odds)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        return cls(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))

    def apply(self, knowledge: Knowledge) -> Tensor:
        top = TopAgainstRest.of(knowledge)
        return top.with_confidence((self.slope * top.log_odds_R + self.intercept).sigmoid())


@dataclass(frozen=True)
class Isotonic:
    """Top-1 confidence by a rising step-wise linear function, the rest rescaled.

    Zadrozny and Elkan 2002; between `confidences` their `accuracies` are interpolated.
    """

    confidences: list[float]
    accuracies: list[float]
    kind: ClassVar[str] = "isotonic"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        from sklearn.isotonic import IsotonicRegression

        confidence = knowledge.top_logprobs.exp().amax(-1).double().numpy()
        right = _top_is_right(knowledge.top_logprobs, is_right_RK)
        # as far from certainty as so many decisions can tell (Laplace's rule of succession)
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


@dataclass(frozen=True)
class TopAgainstRest:
    """Decisions as one against all: the most probable candidate, and everything else."""

    top_R1: Tensor
    """Index of the most probable candidate."""
    others_RK: Tensor
    """Log-probabilities of the other candidates, −inf at the top."""
    log_rest_R: Tensor
    """Of the other candidates and the tail together."""
    log_odds_R: Tensor
    """Top against rest, kept finite."""

    @classmethod
    def of(cls, knowledge: Knowledge) -> Self:
        log_top_R1, top_R1 = knowledge.top_logprobs.max(-1, keepdim=True)
        others_RK = knowledge.top_logprobs.scatter(-1, top_R1, -torch.inf)
        # not 1 − top, which near certainty is rounding
        log_rest_R = torch.logaddexp(others_RK.logsumexp(-1), knowledge.log_tail_mass)
        log_odds_R = (log_top_R1[:, 0] - log_rest_R).clamp(-30, 30)
        return cls(top_R1, others_RK, log_rest_R, log_odds_R)

    def with_confidence(self, confidence_R: Tensor) -> Tensor:
        """Probabilities [R, K]: this of the top, and the rest shared as before.

        Where little confidence is left to it, another candidate may come to be the most probable.
        """
        log_rest_R1 = self.log_rest_R.clamp_min(torch.finfo(self.log_rest_R.dtype).min)[:, None]
        shared = (self.others_RK - log_rest_R1).exp() * (1 - confidence_R)[:, None]
        return shared.scatter(-1, self.top_R1, confidence_R[:, None])


RECALIBRATIONS: dict[str, type[Recalibration]] = {
    r.kind: r
    for r in (Identity, Temperature, VocabularyTemperature, Paper, LabelSmoothing, Platt, Isotonic)
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


def temperature_interval(
    knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings, seed: int
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the fitted temperature over decisions."""
    size = len(is_right_RK)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(settings.bootstrap_samples):
        chosen = torch.from_numpy(generator.integers(size, size=size))
        fitted = Temperature.fit(knowledge[chosen], is_right_RK[chosen], settings)
        found.append(fitted.temperature)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def minimise_over_log(function: Callable[[float], float], lower: float, upper: float) -> float:
    """Argmin over [lower, upper] by a bounded scalar search in the logarithm."""
    bounds = math.log(lower), math.log(upper)
    result = minimize_scalar(lambda log: function(math.exp(log)), bounds=bounds, method="bounded")
    return math.exp(float(result.x))


def _ece(probabilities_RK: Tensor, is_right_RK: Tensor) -> float:
    correct = _top_is_right(probabilities_RK, is_right_RK)
    confidence = probabilities_RK.amax(-1).numpy()
    return float(expected_calibration_error(confidence, correct))


def _top_is_right(scores_RK: Tensor, is_right_RK: Tensor) -> Bools:
    right: Bools = is_right_RK.gather(-1, scores_RK.argmax(-1, keepdim=True))[:, 0].numpy()
    return right
