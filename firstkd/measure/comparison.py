"""A model's metrics, and two models' differences on the same questions, with intervals."""

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike

from firstkd.measure.bootstrap import (
    Counts,
    Draws,
    Estimate,
    Resampled,
    Statistic,
    resample,
)
from firstkd.measure.metrics import METRICS, Floats, Predictions

LIMITS = {"nll": (0.0, np.inf), "brier": (0.0, 2.0), "trust": (-1.0, 1.0)}
"""Range that a metric's interval must stay in, if not 0 to 1."""


def summary(
    model: Predictions, samples: int, seed: int, groups: ArrayLike | None = None
) -> dict[str, Estimate]:
    """Return each metric with its interval over decisions.

    With `groups` [E], a group's decisions are drawn together: tokens of one text, turns of one
    conversation and questions on one passage are not independent of each other.
    """
    found = resample(_statistic(model), Draws.of(len(model), samples, seed, groups))
    return {name: each.estimate(*LIMITS.get(name, (0, 1))) for name, each in found.items()}


def paired_changes(
    first: Predictions,
    second: Predictions,
    samples: int,
    seed: int,
    names: Collection[str] = METRICS,
    groups: ArrayLike | None = None,
) -> dict[str, Resampled]:
    """Return these metrics of the first model less the second's, on the same decisions.

    Whole questions are drawn, so both models are always compared on the same ones: what is hard
    for both cancels out, and the interval is narrower than the two models' own suggest. With
    `groups` [E], whole groups are drawn.
    """
    draws = Draws.of(len(first), samples, seed, groups)
    return resample(less(_statistic(first, names), _statistic(second, names)), draws)


def _statistic(model: Predictions, names: Collection[str] = METRICS) -> Statistic:
    """Return the metrics of a model's decisions.

    The decisions are sorted here, once: a metric that sorts many of them spends most of its time on
    that, and little if they are in order already.
    """
    order = model.confidence.argsort(kind="stable")
    in_order = model[order]
    return lambda counts: in_order.metrics(counts[:, order], names)


def less(first: Statistic, second: Statistic) -> Statistic:
    """Return the first statistic less the second, on the same decisions."""

    def difference(counts: Counts) -> dict[str, Floats]:
        theirs = second(counts)
        return {name: np.asarray(ours - theirs[name]) for name, ours in first(counts).items()}

    return difference


def paired_differences(
    first: Predictions,
    second: Predictions,
    samples: int,
    seed: int,
    names: Collection[str] = METRICS,
    groups: ArrayLike | None = None,
) -> dict[str, Estimate]:
    """Return the differences of `paired_changes` with their intervals."""
    changes = paired_changes(first, second, samples, seed, names, groups)
    return {name: change.estimate() for name, change in changes.items()}
