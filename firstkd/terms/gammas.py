"""γ of a focal loss for each confidence bin, adapted to the calibration questions.

Ghosh et al. 2022, arXiv 2211.11838, with their constants (sec. 5, algorithm 1).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from firstkd.terms.adaptive import Adaptive
from firstkd.terms.gold_loss import wrong

START, HIGHEST, LOWEST = 1.0, 20.0, -2.0
SWITCH = 0.2
"""|γ| below which the loss turns from focal to inverse-focal, or back."""


class Gammas(nn.Module, Adaptive):
    """Plain numbers, so that the training's precision does not round them."""

    def __init__(self, rounds: int, bins: int) -> None:
        super().__init__()
        self.rounds, self.bins = rounds, bins
        self.edges: list[float] = []
        """Where each bin but the first begins."""
        self.gammas = [START]

    def forward(self, right: Tensor) -> Tensor:
        """Return γ at these probabilities of the right choice, in their shape."""
        bins = torch.bucketize(right, right.new_tensor(self.edges), right=True)
        return right.new_tensor(self.gammas)[bins]

    def adapt(self, scores_EC: Tensor, right_E: Tensor) -> None:
        confidence_E, predicted_E = scores_EC.softmax(-1).max(-1)
        confidence_E, order_E = confidence_E.sort(stable=True)
        correct_E = (predicted_E == right_E)[order_E].double()
        of_bins = [part for part in torch.arange(len(order_E)).tensor_split(self.bins) if len(part)]
        if len(self.gammas) != len(of_bins):  # in the first round
            self.gammas = [START] * len(of_bins)
        self.edges = [float(confidence_E[part[0]]) for part in of_bins[1:]]
        gaps = [float((confidence_E[part] - correct_E[part]).mean()) for part in of_bins]
        self.gammas = [following(*each) for each in zip(self.gammas, gaps, strict=True)]

    def state(self) -> Any:
        return {"edges": self.edges, "gammas": self.gammas}

    def restore(self, state: Any) -> None:
        self.edges, self.gammas = state["edges"], state["gammas"]


def following(gamma: float, gap: float) -> float:
    """Return the next γ of a bin whose confidence is `gap` higher than its accuracy."""
    gamma *= math.exp(gap if gamma > 0 else -gap)
    if abs(gamma) < SWITCH:
        gamma = -math.copysign(SWITCH, gamma)
    return min(max(gamma, LOWEST), HIGHEST)


def focal(right: Tensor, gamma: Tensor) -> Tensor:
    """Return the focal or inverse-focal losses of log-probabilities of right choices."""
    kept = torch.where(gamma > 0, wrong(right), 1 + right.exp())
    return -(kept ** gamma.abs()) * right
