"""Dirichlet distributions over a question's choices, of a student and of an ensemble.

Legend: B questions, M members, C choices.
"""

import torch
from torch import Tensor

SMOOTHING = 1e-3
"""Share of each member's probability that is spread evenly over all choices: if a member gave a
choice nothing, its density would be 0 or infinite."""


def proxy_divergence(
    scores_BC: Tensor, members_BMC: Tensor, exists_BC: Tensor, offset: float
) -> Tensor:
    """Return KL(Dir(α) ‖ Dir(β))/β₀ per question [B]; α = exp(scores + offset) + 1.

    β is 1 + β₀ times the members' mean q̄. By Stirling's approximation of the likelihood, β₀ is
    (C − 1) / (2 Σ_c q̄_c (log q̄_c − mean_m log q_mc)) (Ryabinin et al. 2021, sec. 3); capped at
    e^offset, which it would exceed if the members agreed.
    """
    members_BMC = smoothed(members_BMC, exists_BC)
    mean_BC, log_mean_BC = members_BMC.mean(1), _log(members_BMC).mean(1)
    spread_B = (mean_BC * (_log(mean_BC) - log_mean_BC)).sum(-1)
    least = torch.finfo(spread_B.dtype).tiny
    precision_B = (exists_BC.sum(-1) - 1) / (2 * spread_B).clamp_min(least)
    precision_B1 = precision_B.clamp_max(torch.e**offset)[:, None]
    beta_BC = (precision_B1 * mean_BC + 1) * exists_BC
    alpha_BC = concentration(scores_BC, exists_BC, offset)
    divergence_B = dirichlet_kl(alpha_BC, beta_BC, exists_BC) / precision_B1[:, 0]
    return divergence_B.to(scores_BC.dtype)


def negative_log_likelihood(
    scores_BC: Tensor, members_BMC: Tensor, exists_BC: Tensor, offset: float
) -> Tensor:
    """Return the mean over members of −log Dir(q_m; α) per question [B] (Malinin et al. 2020)."""
    alpha_BC = concentration(scores_BC, exists_BC, offset)
    log_members_BC = _log(smoothed(members_BMC, exists_BC)).mean(1)
    expected_B = ((alpha_BC - 1) * log_members_BC).masked_fill(~exists_BC, 0.0).sum(-1)
    return (log_beta(alpha_BC, exists_BC) - expected_B).to(scores_BC.dtype)


def concentration(scores_BC: Tensor, exists_BC: Tensor, offset: float) -> Tensor:
    """Return α in float64, since logarithms of Γ cancel; 0 where there is no choice."""
    return ((scores_BC.double() + offset).exp() + 1) * exists_BC


def dirichlet_kl(alpha_BC: Tensor, beta_BC: Tensor, exists_BC: Tensor) -> Tensor:
    """KL(Dir(α) ‖ Dir(β)) per question [B]."""
    total_B1 = alpha_BC.sum(-1, keepdim=True)
    # any argument will do where there is no choice
    expected_log_BC = alpha_BC.masked_fill(~exists_BC, 1.0).digamma() - total_B1.digamma()
    moved_B = ((alpha_BC - beta_BC) * expected_log_BC).sum(-1)
    return log_beta(beta_BC, exists_BC) - log_beta(alpha_BC, exists_BC) + moved_B


def log_beta(alpha_BC: Tensor, exists_BC: Tensor) -> Tensor:
    """Return [B], the logarithm of the multivariate beta function."""
    of_choices_B = alpha_BC.masked_fill(~exists_BC, 1.0).lgamma().sum(-1)  # Γ(1) = 1
    return of_choices_B - alpha_BC.sum(-1).lgamma()


def smoothed(members_BMC: Tensor, exists_BC: Tensor) -> Tensor:
    """Return the members' probabilities in float64, never 0 where there is a choice."""
    uniform_BC = exists_BC.double() / exists_BC.sum(-1, keepdim=True)
    return members_BMC.double().lerp(uniform_BC[:, None].expand_as(members_BMC), SMOOTHING)


def _log(probabilities: Tensor) -> Tensor:
    """Return the logarithm, but 0 where there is no choice."""
    return probabilities.masked_fill(probabilities == 0, 1.0).log()
