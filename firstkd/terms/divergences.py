"""Divergences between a teacher's decisions and a student's, and the choices' scores.

Legend: N positions, K top-k, M scored tokens, B questions, C choices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def choice_scores(logprobs_M: Tensor, response_of_M: Tensor, choice_mask_BC: Tensor) -> Tensor:
    """Scores [B, C]: the mean log-probability of each choice's tokens, −inf where there is none.

    The mean, not the sum, which would favour short choices (benchmarks/choice_score.py).
    """
    sums = logprobs_M.new_zeros(choice_mask_BC.numel()).index_add(0, response_of_M, logprobs_M)
    counts = response_of_M.bincount(minlength=choice_mask_BC.numel()).clamp_min(1)
    return (sums / counts).view_as(choice_mask_BC).masked_fill(~choice_mask_BC, -torch.inf)


def with_gold(target_BC: Tensor, gold_B: Tensor, share: float) -> Tensor:
    """Give `share` of each target to the right choice; where that is −1, unknown, to none."""
    known_B = gold_B >= 0
    right_BC = F.one_hot(gold_B.clamp_min(0), target_BC.shape[1]).to(target_BC.dtype)
    return torch.where(known_B[:, None], target_BC.lerp(right_BC, share), target_BC)


def choice_kl(target_BC: Tensor, scores_BC: Tensor) -> Tensor:
    """KL(target ‖ softmax(scores)) per question [B]; choices that do not exist score −inf."""
    log_student = F.log_softmax(scores_BC, dim=-1)
    exists = torch.isfinite(scores_BC)
    log_student = torch.where(exists, log_student, 0.0)
    return (torch.xlogy(target_BC, target_BC) - target_BC * log_student).sum(-1)


def sparse_kl(
    target_NK: Tensor,
    target_tail_N: Tensor,
    logprobs_NK: Tensor,
    log_tail_N: Tensor,
    tail_policy: str,
) -> Tensor:
    """Forward KL per position [N] from a teacher known by its top-k probabilities and its tail.

    `target_tail_N` is the probability of everything outside the top-k as it was stored: one minus
    the sum of probabilities that were rounded to float16 is off by up to 5·10⁻⁴, which is more
    than most tails hold.

    `ghost` adds one bin for the tail, so the student matches the head and the total mass of the
    tail: Σ t·log(t/p) + t_tail·log(t_tail/p_tail).
    `renormalise` compares the conditional distributions on the head (the published loss); the
    student's mass on the head receives no gradient.
    """
    if tail_policy == "renormalise":
        target = target_NK / target_NK.sum(-1, keepdim=True)
        student = F.log_softmax(logprobs_NK, dim=-1)
        return (torch.xlogy(target, target) - target * student).sum(-1)
    head = (torch.xlogy(target_NK, target_NK) - target_NK * logprobs_NK).sum(-1)
    # −inf: the head is the whole vocabulary, and what the target has beside it is rounding
    student_tail = log_tail_N.masked_fill(log_tail_N == -torch.inf, 0.0)
    return head + torch.xlogy(target_tail_N, target_tail_N) - target_tail_N * student_tail
