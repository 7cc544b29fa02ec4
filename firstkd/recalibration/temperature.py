"""`temperature`: softmax of the candidates at a temperature; the tail keeps its mass."""

import logging
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstkd.measure.bootstrap import Counts, Draws, Estimate, Floats, resample
from firstkd.measure.metrics import Bools
from firstkd.recalibration.base import Recalibration
from firstkd.recalibration.search import loss, minimise_over_log
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.signals.knowledge import Knowledge

INTERVAL_STEPS = 120
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Temperature(Recalibration):
    """p'(i) = S · softmax_i(log p / T) with S the candidates' mass (Guo et al. 2017, sec. 4.2)."""

    temperature: float
    kind: ClassVar[str] = "temperature"

    @classmethod
    def fit(cls, knowledge: Knowledge, is_right_RK: Tensor, settings: CalibrateSettings) -> Self:
        once = np.ones((1, len(knowledge)))

        def loss_at(temperature: float) -> float:
            return float(cls(temperature)._loss(knowledge, is_right_RK, settings, once)[0])

        return cls(minimise_over_log(loss_at, *bounds(settings)))

    def apply(self, knowledge: Knowledge) -> Tensor:
        mass = knowledge.top_logprobs.exp().sum(-1, keepdim=True)
        return mass * (knowledge.top_logprobs / self.temperature).softmax(-1)

    def at_bound(self, settings: CalibrateSettings) -> float | None:
        return self.temperature if self.temperature in bounds(settings) else None

    def _loss(
        self,
        knowledge: Knowledge,
        is_right_RK: Tensor,
        settings: CalibrateSettings,
        counts_SR: Counts,
    ) -> Floats:
        probabilities_RK = self.apply(knowledge)
        # a right answer in the tail keeps its probability, so it says nothing about T
        gold_R = (probabilities_RK * is_right_RK).sum(-1)
        gold_R = gold_R.masked_fill(~is_right_RK.any(-1), torch.nan)
        return loss(settings.criterion, probabilities_RK, gold_R, is_right_RK, counts_SR)


def bounds(settings: CalibrateSettings) -> tuple[float, float]:
    return 1 / settings.max_temperature, settings.max_temperature


def warn_at_bound(what: str, temperature: float, correct_R: Bools) -> None:
    """Warn about a temperature at a bound of its search; `what` names the model and the split."""
    log.warning(
        "%s: the fitted temperature of %g is at the bound of its search: the best one lies "
        "beyond, so the confidence it gives is not calibrated. %d of %d decisions are right; a "
        "split that the model gets all right or all wrong cannot show how sure it should be. Use "
        "more and different calibration examples, or widen calibrate.max_temperature",
        what,
        temperature,
        correct_R.sum(),
        len(correct_R),
    )


def temperature_interval(
    fitted: Temperature,
    knowledge: Knowledge,
    is_right_RK: Tensor,
    example_R: NDArray[np.int64],
    settings: CalibrateSettings,
    seed: int,
) -> Estimate:
    """Return the fitted temperature with its 95 % bootstrap interval.

    `example_R` names the example of each decision: whole examples are drawn, since the tokens of
    one text are not independent. All draws are fitted on one grid of temperatures.
    """
    log_grid = np.log(np.geomspace(*bounds(settings), INTERVAL_STEPS + 1))

    def best(counts_SR: Counts) -> dict[str, Floats]:
        losses = [
            Temperature(float(t))._loss(knowledge, is_right_RK, settings, counts_SR)
            for t in np.exp(log_grid)
        ]
        losses_SG = np.stack(losses, axis=-1)
        lowest = losses_SG.argmin(-1)
        found = log_grid[lowest]
        if settings.criterion == "nll":  # smooth, so interpolate between the points of the grid
            found = found + _vertex(losses_SG, lowest) * (log_grid[1] - log_grid[0])
        return {"log": found}

    draws = Draws.grouped(example_R, settings.bootstrap_samples, seed)
    interval = resample(best, draws)["log"].estimate(log_grid[0], log_grid[-1])
    low, high = float(np.exp(interval.low)), float(np.exp(interval.high))
    value = fitted.temperature
    return Estimate(value, min(low, value), max(high, value))


def _vertex(losses_SG: Floats, lowest_S: NDArray[np.int64]) -> Floats:
    """Return [S]: where the parabola around each lowest point is lowest, in grid steps from it."""
    inside = np.clip(lowest_S, 1, losses_SG.shape[1] - 2)
    before, at, after = (
        np.take_along_axis(losses_SG, (inside + shift)[:, None], -1)[:, 0] for shift in (-1, 0, 1)
    )
    curvature = before - 2 * at + after
    shift = np.where(curvature > 0, (before - after) / 2 / np.maximum(curvature, 1e-300), 0)
    return np.where(inside == lowest_S, np.clip(shift, -1, 1), 0)
