"""Divergences between a teacher's decisions and a student's.

Legend: N positions, K top-k, B questions, C choices.
"""

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from firstkd.terms.divergence import FORWARD, Divergence, TailPolicy

ABSENT = -1e4
"""Log-probability of an absent candidate: 0 as a probability, but finite."""


def with_gold(target_BC: Tensor, gold_B: Tensor, share: float) -> Tensor:
    """Give `share` of each target to the right choice, unless that is unknown (−1)."""
    known_B = gold_B >= 0
    right_BC = F.one_hot(gold_B.clamp_min(0), target_BC.shape[1]).to(target_BC.dtype)
    return torch.where(known_B[:, None], target_BC.lerp(right_BC, share), target_BC)


def choice_kl(
    target_BC: Tensor, scores_BC: Tensor, divergence: Divergence = FORWARD, temperature: float = 1.0
) -> Tensor:
    """Divergence of softmax(scores) from the target per question [B]; −inf: no such choice.

    With a temperature T: T² times that of softmax(scores / T), so that the gradient keeps its size
    (Hinton et al. 2015, sec. 2).
    """
    log_student = F.log_softmax(scores_BC / temperature, dim=-1)
    log_student = log_student.masked_fill(~torch.isfinite(scores_BC), ABSENT)
    return temperature**2 * divergence(target_BC, log_student).sum(-1)


def without_absent(
    target_NK: Tensor, logprobs_NK: Tensor, log_tail_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the student's candidates and tail, with candidates of target 0 moved to the tail: a
    position may have fewer than K candidates, and is then padded with arbitrary tokens."""
    is_absent_NK = target_NK == 0
    if not bool(is_absent_NK.any()):
        return logprobs_NK, log_tail_N
    log_absent_N = logprobs_NK.masked_fill(~is_absent_NK, ABSENT).logsumexp(-1)
    return logprobs_NK.masked_fill(is_absent_NK, ABSENT), torch.logaddexp(log_tail_N, log_absent_N)


def most_uncertain(entropy_N: Tensor, group_N: Tensor, limit_G: Tensor) -> Tensor:
    """Return, in order, each group's positions of highest entropy, as many as its limit."""
    order_N = entropy_N.argsort(descending=True, stable=True)
    order_N = order_N[group_N[order_N].argsort(stable=True)]
    sizes_G = group_N.bincount(minlength=len(limit_G))
    group_of_N = group_N[order_N]
    rank_N = torch.arange(len(order_N), device=order_N.device)
    rank_N = rank_N - (sizes_G.cumsum(0) - sizes_G)[group_of_N]
    return order_N[rank_N < limit_G[group_of_N]].sort().values


def sparse_kl(
    target_NK: Tensor,
    target_tail_N: Tensor,
    logprobs_NK: Tensor,
    log_tail_N: Tensor,
    tail_policy: TailPolicy,
    divergence: Divergence = FORWARD,
) -> Tensor:
    """Divergence per position [N] from a teacher known by its top-k probabilities and its tail.

    `target_tail_N` is the stored probability of everything outside the top-k: one minus the sum of
    probabilities rounded to float16 is off by up to 5·10⁻⁴, which is more than most tails have.

    `ghost` adds one bin for the tail, so the student matches the head and the total mass of the
    tail; forward: Σ t·log(t/p) + t_tail·log(t_tail/p_tail).
    `renormalise` compares the conditional distributions on the head (the published loss); the
    student's mass on the head receives no gradient.
    """
    if tail_policy == "renormalise":
        target = target_NK / target_NK.sum(-1, keepdim=True)
        student = F.log_softmax(logprobs_NK, dim=-1)
        return divergence(target, student).sum(-1)
    if tail_policy == "ghost":
        # −inf: the head is the whole vocabulary, and any target mass outside it is rounding
        is_empty = log_tail_N == -torch.inf
        tail = divergence(target_tail_N, log_tail_N.masked_fill(is_empty, ABSENT))
        return divergence(target_NK, logprobs_NK).sum(-1) + tail.masked_fill(is_empty, 0.0)
    assert_never(tail_policy)


def same_places(counts_B: Tensor, others_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of each question's t-th token in two token lists, for each t in both."""
    both_B = torch.minimum(counts_B, others_B)
    question_P = torch.arange(len(both_B), device=both_B.device).repeat_interleave(both_B)
    place_P = torch.arange(len(question_P), device=both_B.device)
    place_P = place_P - (both_B.cumsum(0) - both_B)[question_P]
    first_B, others_first_B = counts_B.cumsum(0) - counts_B, others_B.cumsum(0) - others_B
    return first_B[question_P] + place_P, others_first_B[question_P] + place_P
