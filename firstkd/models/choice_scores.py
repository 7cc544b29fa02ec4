"""The choices' scores, from the log-probabilities of their tokens.

Legend: M scored tokens, B questions, C choices.
"""

import torch
from torch import Tensor


def choice_scores(logprobs_M: Tensor, response_of_M: Tensor, choice_mask_BC: Tensor) -> Tensor:
    """Return scores [B, C]: the mean log-probability of each choice's tokens, −inf if absent.

    The mean, not the sum, which would favour short choices (benchmarks/choice_score.py).
    """
    sums = logprobs_M.new_zeros(choice_mask_BC.numel()).index_add(0, response_of_M, logprobs_M)
    counts = response_of_M.bincount(minlength=choice_mask_BC.numel()).clamp_min(1)
    return (sums / counts).view_as(choice_mask_BC).masked_fill(~choice_mask_BC, -torch.inf)
