"""Search for a temperature: by likelihood, or by calibration error, which is a step function."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from torch import Tensor

from firstkd.measure.bootstrap import Counts, Floats
from firstkd.measure.metrics import expected_calibration_error
from firstkd.recalibration.base import top_is_right

Criterion = Literal["nll", "ece"]
STEPS = 60
"""Steps of the grid over the whole range."""
REFINEMENTS = 7
"""Each cuts the step to a quarter: from a tenth of T to 6·10⁻⁶ of it."""
NOISE = 1e-7
"""Differences in the loss below this are float32 rounding."""


def loss(
    criterion: Criterion,
    probabilities_RK: Tensor,
    gold_R: Tensor,
    is_right_RK: Tensor,
    counts_SR: Counts,
) -> Floats:
    """Return [S]: mean NLL or ECE of decisions drawn as often as `counts_SR` says.

    `gold_R` is the probability of the right answer, NaN if a decision's likelihood does not depend
    on the temperature.
    """
    if criterion == "ece":
        confidence = probabilities_RK.amax(-1).double().numpy()
        correct = top_is_right(probabilities_RK, is_right_RK)
        return expected_calibration_error(confidence, correct, counts=counts_SR)
    gold = gold_R.double().numpy()
    counted = np.isfinite(gold)
    weight_SR = counts_SR[:, counted]
    negative_log = -np.log(np.maximum(gold[counted], 1e-30))
    return np.asarray((weight_SR * negative_log).sum(-1) / np.maximum(weight_SR.sum(-1), 1))


def minimise_over_log(function: Callable[[float], float], lower: float, upper: float) -> float:
    """Return the argmin over [lower, upper], both included; ties go to the lowest.

    Searches a grid in the logarithm, then finer ones around the best point: steps, plateaus and
    several minima do not mislead it as they would a gradient search. Returns a bound if nothing
    inside is better by more than rounding.
    """
    step = np.log(upper / lower) / STEPS
    grid = np.geomspace(lower, upper, STEPS + 1)
    best = _lowest(function, grid)
    for _ in range(REFINEMENTS):
        around = np.clip(best * np.exp(step * np.arange(-4, 5) / 4), lower, upper)
        best = _lowest(function, around)
        step /= 4
    # where the loss levels off towards a bound, points differ only by rounding
    limit = function(best) + NOISE
    return next((bound for bound in (lower, upper) if function(bound) <= limit), best)


def _lowest(function: Callable[[float], float], grid: Floats) -> float:
    return float(grid[int(np.argmin([function(float(value)) for value in grid]))])
