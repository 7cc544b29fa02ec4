"""What the student is trained on: log-probabilities of chosen tokens, and divergences over them.

Legend: N supervised positions, H hidden size, V vocabulary, M (position, token) pairs, K top-k,
B questions, C choices.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Of float32 logits at a time: enough to keep the matrix product busy, and all that memory sees."""


class _HeadLogprobs(torch.autograd.Function):
    """The head, log-softmax and a gather in one, chunk by chunk; the backward pass recomputes.

    With g the gradient of the gathered log-probabilities and h that of the log tail mass, the
    gradient of a position's logits is  scatter(g) − Σg · p  +  h · (p off the head / tail − p).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        rows_M: Tensor,
        targets_M: Tensor,
        tail: bool,
    ) -> tuple[Tensor, Tensor]:
        accumulate = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_M = hidden_NH.new_empty(len(rows_M), dtype=accumulate)
        log_tail_N = hidden_NH.new_zeros(len(hidden_NH) if tail else 0, dtype=accumulate)
        for start, end, inside in head_chunks(hidden_NH, weight_VH, rows_M):
            logits = (hidden_NH[start:end] @ weight_VH.T).to(accumulate)
            log_partition = logits.logsumexp(-1)
            rows, targets = rows_M[inside] - start, targets_M[inside]
            logprobs_M[inside] = logits[rows, targets] - log_partition[rows]
            if tail:
                logits[rows, targets] = -torch.inf
                log_tail_N[start:end] = logits.logsumexp(-1) - log_partition
        ctx.save_for_backward(hidden_NH, weight_VH, rows_M, targets_M)
        ctx.tail = tail
        return logprobs_M, log_tail_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_M, gradient_tail_N = gradients
        hidden_NH, weight_VH, rows_M, targets_M = ctx.saved_tensors
        gradient_hidden = torch.empty_like(hidden_NH)
        gradient_weight = torch.zeros_like(weight_VH, dtype=gradient_M.dtype)
        for start, end, inside in head_chunks(hidden_NH, weight_VH, rows_M):
            hidden = hidden_NH[start:end]
            logits = (hidden @ weight_VH.T).to(gradient_M.dtype)
            rows, targets = rows_M[inside] - start, targets_M[inside]
            gradient = gradient_M[inside]
            total = torch.zeros_like(logits[:, 0]).index_add_(0, rows, gradient)
            if ctx.tail:
                tail = gradient_tail_N[start:end]
                off_head = logits.index_put((rows, targets), logits.new_tensor(-torch.inf))
                gradient_logits = off_head.softmax(-1).nan_to_num_(0.0).mul_(tail[:, None])
                gradient_logits.sub_(logits.softmax(-1).mul_((total + tail)[:, None]))
            else:
                gradient_logits = logits.softmax(-1).mul_(-total[:, None])
            gradient_logits.index_put_((rows, targets), gradient, accumulate=True)
            gradient_logits = gradient_logits.to(hidden.dtype)
            gradient_hidden[start:end] = gradient_logits @ weight_VH
            gradient_weight += gradient_logits.T @ hidden
        return gradient_hidden, gradient_weight.to(weight_VH.dtype), None, None, None


def head_chunks(
    hidden_NH: Tensor, weight_VH: Tensor, rows_M: Tensor
) -> list[tuple[int, int, Tensor]]:
    """(start, end, indices into M of what lies between) such that a chunk's logits fit."""
    size = max(1, CHUNK_BYTES // (4 * len(weight_VH)))
    starts = range(0, len(hidden_NH), size)
    if len(starts) == 1:
        return [(0, len(hidden_NH), torch.arange(len(rows_M), device=rows_M.device))]
    return [
        (start, start + size, ((rows_M >= start) & (rows_M < start + size)).nonzero()[:, 0])
        for start in starts
    ]


def head_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, rows_M: Tensor, targets_M: Tensor
) -> Tensor:
    """Log-probabilities [M] of token `targets_M` at position `rows_M`; never [N, V] in memory."""
    logprobs_M: Tensor = _HeadLogprobs.apply(hidden_NH, weight_VH, rows_M, targets_M, False)[0]
    return logprobs_M


def head_topk_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, top_ids_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, K] of given tokens and the log-mass [N] of all others."""
    n, k = top_ids_NK.shape
    rows = torch.arange(n, device=top_ids_NK.device).repeat_interleave(k)
    logprobs, log_tail = _HeadLogprobs.apply(hidden_NH, weight_VH, rows, top_ids_NK.flatten(), True)
    return logprobs.view(n, k), log_tail


def choice_scores(logprobs_M: Tensor, response_of_M: Tensor, choice_mask_BC: Tensor) -> Tensor:
    """Scores [B, C]: the mean log-probability of each choice's tokens, −inf where there is none.

    The mean, not the sum, which would favour short choices (benchmarks/choice_score.py).
    """
    sums = logprobs_M.new_zeros(choice_mask_BC.numel()).index_add(0, response_of_M, logprobs_M)
    counts = response_of_M.bincount(minlength=choice_mask_BC.numel()).clamp_min(1)
    return (sums / counts).view_as(choice_mask_BC).masked_fill(~choice_mask_BC, -torch.inf)


def choice_kl(target_BC: Tensor, scores_BC: Tensor) -> Tensor:
    """KL(target ‖ softmax(scores)) per question [B]; choices that do not exist score −inf."""
    log_student = F.log_softmax(scores_BC, dim=-1)
    exists = torch.isfinite(scores_BC)
    log_student = torch.where(exists, log_student, 0.0)
    return (torch.xlogy(target_BC, target_BC) - target_BC * log_student).sum(-1)


def sparse_kl(
    target_NK: Tensor, logprobs_NK: Tensor, log_tail_N: Tensor, tail_policy: str
) -> Tensor:
    """Forward KL per position [N] from a teacher known by its top-k probabilities alone.

    `ghost` adds one bin for everything outside the top-k, so the student matches the head and the
    total mass of the tail: Σ t·log(t/p) + (1−S_t)·log((1−S_t)/(1−S_p)).
    `renormalise` compares the conditional distributions on the head (the published loss); the
    student's mass on the head receives no gradient.
    """
    if tail_policy == "renormalise":
        target = target_NK / target_NK.sum(-1, keepdim=True)
        student = F.log_softmax(logprobs_NK, dim=-1)
        return (torch.xlogy(target, target) - target * student).sum(-1)
    target_tail = (1 - target_NK.sum(-1)).clamp_min(0)
    head = (torch.xlogy(target_NK, target_NK) - target_NK * logprobs_NK).sum(-1)
    # −inf: the head is the whole vocabulary, and what the target lacks to 1 is rounding
    student_tail = log_tail_N.masked_fill(log_tail_N == -torch.inf, 0.0)
    return head + torch.xlogy(target_tail, target_tail) - target_tail * student_tail
