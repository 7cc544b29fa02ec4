"""A temperature learned against the student, and the divergence at that temperature.

Legend: B questions, C choices.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firstkd.terms.divergences import ABSENT

STEP = 100.0
"""Factor of the parameter: AdamW moves it by about the learning rate per step, which suits weights
but would leave a temperature where it starts."""


class AdverseTemperature(nn.Module):
    """T = lowest + (highest − lowest) · σ(reach · θ), whose gradient is reversed.

    The paper lets the reversed gradient grow; AdamW divides gradients by their size, so here
    the reach grows.
    """

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self.lowest, self.span = lowest, highest - lowest
        self.theta = nn.Parameter(torch.zeros(1))

    def forward(self, reach: float) -> Tensor:
        theta = self.theta.to(torch.promote_types(self.theta.dtype, torch.float32))
        value = theta.detach()
        # STEP in value, −1 in slope: it must not outweigh the weights when gradients are clipped
        reversed_theta = STEP * value - (theta - value)
        return self.lowest + self.span * (reach * reversed_theta).sigmoid()


def reach(progress: float, rise: float) -> float:
    """Return the share of T's reach: half a cosine from 0 to 1 (Li et al. 2023, sec. 3.3)."""
    if progress >= rise:
        return 1.0
    return 0.5 * (1 - math.cos(math.pi * progress / rise))


def tempered_kl(
    target_BC: Tensor, scores_BC: Tensor, exists_BC: Tensor, temperature: Tensor
) -> Tensor:
    """Return T² KL(target ‖ student), both at T, per question [B]; T may have a gradient."""
    tiny = torch.finfo(target_BC.dtype).tiny
    logs = target_BC.clamp_min(tiny).log(), scores_BC
    target, student = (
        F.log_softmax(log.masked_fill(~exists_BC, ABSENT) / temperature, dim=-1) for log in logs
    )
    return temperature**2 * (target.exp() * (target - student)).sum(-1)
