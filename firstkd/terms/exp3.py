"""A bandit that draws the term to learn from, rewarded by how far the calibration NLL falls.

Exp3 (Auer et al. 2002) with the constant rate of Bubeck and Cesa-Bianchi 2012, arXiv 1204.5721,
theorem 3.1. The reward of a round is scaled by the rewards so far (Graves et al. 2017, arXiv
1704.03003, sec. 3), since falls are large at first and small later.

Legend: E questions, C choices, A arms.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from firstkd.measure.ranking import Floats
from firstkd.recalibration.search import minimise_over_log
from firstkd.terms.adaptive import Adaptive
from firstkd.terms.bandit_settings import Bandit

QUANTILES = 0.2, 0.8
"""Falls at or below the first quantile so far earn no reward, at or above the second all of it."""
LARGEST_TEMPERATURE = 100.0


class Exp3(Adaptive):
    def __init__(self, settings: Bandit, seed: int) -> None:
        self.rounds, self.arms, self.seed = settings.rounds, settings.arms, seed
        count = len(self.arms)
        self.rate = math.sqrt(2 * math.log(count) / (self.rounds * count))
        self.losses = [0.0] * count
        """Sum of each arm's losses in its rounds, each divided by the arm's probability then."""
        self.falls: list[float] = []
        """How far the calibration NLL fell in each finished round."""
        self.nll = math.nan
        self.drawn = 0

    def adapt(self, scores_EC: Tensor, right_E: Tensor) -> None:
        """End the current round, if any, and draw the arm of the next."""
        before, self.nll = self.nll, lowest_nll(scores_EC, right_E)
        if not math.isnan(before):
            self.falls.append(before - self.nll)
            probability = self._probabilities()[self.drawn]
            self.losses[self.drawn] += (1 - reward(self.falls)) / float(probability)
        generator = np.random.default_rng([self.seed, len(self.falls)])
        self.drawn = int(generator.choice(len(self.arms), p=self._probabilities()))

    def _probabilities(self) -> Floats:
        """[A], ∝ exp(−rate · loss)."""
        losses_A = np.array(self.losses)
        weights_A = np.exp(-self.rate * (losses_A - losses_A.min()))
        return np.asarray(weights_A / weights_A.sum())

    def weighed(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of all terms, 0 for arms that were not drawn."""
        idle = {*self.arms} - {self.arms[self.drawn]}
        return {name: 0.0 if name in idle else weight for name, weight in weights.items()}

    @property
    def shown(self) -> dict[str, float]:
        """What the training curve shows: the probability of each arm."""
        found = self._probabilities().tolist()
        return {f"{arm}_probability": p for arm, p in zip(self.arms, found, strict=True)}

    def state(self) -> Any:
        return {
            "losses": self.losses, "falls": self.falls, "nll": self.nll, "drawn": self.drawn
        }  # fmt: skip

    def restore(self, state: Any) -> None:
        self.losses, self.falls = state["losses"], state["falls"]
        self.nll, self.drawn = state["nll"], state["drawn"]


def reward(falls: list[float]) -> float:
    """Return the last fall, scaled to 0 … 1 by the quantiles of all falls so far."""
    low, high = np.quantile(falls, QUANTILES)
    if high <= low:
        return 0.5
    return float(np.clip((falls[-1] - low) / (high - low), 0, 1))


def lowest_nll(scores_EC: Tensor, right_E: Tensor) -> float:
    """Return the mean NLL at the temperature that minimises it, fitted for each student."""

    def nll(temperature: float) -> float:
        logprobs_EC = (scores_EC / temperature).log_softmax(-1)
        return float(-logprobs_EC.gather(-1, right_E[:, None]).mean())

    return nll(minimise_over_log(nll, 1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE))
