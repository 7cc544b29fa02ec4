"""The head: log-probabilities of chosen tokens, without all logits at once.

Legend: N supervised positions, H hidden size, V vocabulary, M (position, token) pairs, R token
decisions, each at a different position, K top-k.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 1024
"""Positions whose logits exist at a time. Fewer take less memory; but the last chunk is not
recomputed in the backward pass, and each chunk also adds to the whole gradient of the weight,
which at 100 rows takes as long as the matrix products."""
CACHED_ROWS = 32
"""Rows of a chunk whose float32 logits exist at a time on a CPU, where they stay in one core's
cache."""


class HeadScores(NamedTuple):
    """What the head returns; all logarithms are natural."""

    logprobs_M: Tensor
    """Log-probability of each pair's token at its position."""
    top_logprobs_RK: Tensor
    """Log-probabilities of each decision's top-k tokens."""
    log_tail_R: Tensor
    """Log of the mass of all other tokens; −inf if the top-k are the whole vocabulary."""
    best_of_tail_R: Tensor
    """Log-probability of the most probable other token; for measuring only, without gradient."""
    mean_logprob_N: Tensor
    """Mean log-probability of all tokens at each position; empty unless requested."""
    entropy_N: Tensor
    """Entropy of the distribution at each position; empty unless requested, without gradient."""


def head_scores(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    rows_M: Tensor,
    targets_M: Tensor,
    decisions_R: Tensor,
    top_ids_RK: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    asks_vocabulary: bool = False,
) -> HeadScores:
    """Score pairs and decisions in one pass of the head; [N, V] is never materialised.

    Pair m is the token `targets_M[m]` at the position `rows_M[m]`; decision r has the distinct
    tokens `top_ids_RK[r]` at the position `decisions_R[r]`, which no other decision shares.
    """
    return HeadScores(
        *_HeadScores.apply(
            *(hidden_NH, weight_VH, bias_V, softcap, asks_vocabulary),
            *(rows_M, targets_M, decisions_R, top_ids_RK),
        )
    )


class _HeadScores(torch.autograd.Function):
    """The head, log-softmax and a gather in one, chunk by chunk.

    The backward pass reuses the last chunk's logits and recomputes the others. Most batches fit
    into one chunk, which is computed only once.

    With q the softmax over a position's tail, t the tail's mass, h the gradient of its logarithm,
    and G the sum of all gradients at the position, the gradient of its logits is q · (h − G·t) on
    the tail and g − G·p on the top-k, plus each pair's own. Neither expression divides by a mass
    that could vanish. A position without a decision has no top-k: t = 1, h = 0. The gradient u of a
    position's mean log-probability is part of G, and adds u / V to each of its V logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        asks_vocabulary: bool,
        rows_M: Tensor,
        targets_M: Tensor,
        decisions_R: Tensor,
        top_ids_RK: Tensor,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_M = hidden_NH.new_empty(len(rows_M), dtype=wide)
        top_logprobs_RK = hidden_NH.new_empty(top_ids_RK.shape, dtype=wide)
        log_tail_N = hidden_NH.new_empty(len(hidden_NH), dtype=wide)
        best_of_tail_N = hidden_NH.new_empty(len(hidden_NH), dtype=wide)
        log_partition_N = hidden_NH.new_empty(len(hidden_NH), dtype=wide)
        mean_N = hidden_NH.new_empty(len(hidden_NH) if asks_vocabulary else 0, dtype=wide)
        entropy_N = torch.empty_like(mean_N)
        for chunk_start, chunk_end in chunks(len(hidden_NH)):
            chunk = F.linear(hidden_NH[chunk_start:chunk_end], weight_VH, bias_V)
            for start, end in pieces(chunk_start, chunk):
                logits = widened(chunk[start - chunk_start : end - chunk_start], softcap)
                pairs = within(rows_M, start, end)
                rows = rows_M[pairs] - start
                if asks_vocabulary:
                    mean_N[start:end] = logits.mean(-1)
                    entropy_N[start:end] = -(logits.softmax(-1) * logits).sum(-1)
                pair_logits = logits[rows, targets_M[pairs]]
                here = within(decisions_R, start, end)
                deciding, top_ids = decisions_R[here, None] - start, top_ids_RK[here]
                top_logits = logits[deciding, top_ids]
                logits[deciding, top_ids] = -torch.inf
                best = logits.amax(-1)
                # in place; an empty tail gives −inf − 0, not the NaN of −inf + inf
                shift = best.masked_fill(best == -torch.inf, 0.0)
                log_rest = logits.sub_(shift[:, None]).exp_().sum(-1).log_().add_(shift)
                log_partition = log_rest.clone()
                log_partition[deciding[:, 0]] = torch.logaddexp(
                    log_rest[deciding[:, 0]], top_logits.logsumexp(-1)
                )
                logprobs_M[pairs] = pair_logits - log_partition[rows]
                top_logprobs_RK[here] = top_logits - log_partition[deciding]
                log_tail_N[start:end] = log_rest - log_partition
                best_of_tail_N[start:end] = best - log_partition
                log_partition_N[start:end] = log_partition
        ctx.save_for_backward(
            hidden_NH, weight_VH, bias_V, rows_M, targets_M, decisions_R, top_ids_RK,
            top_logprobs_RK, log_tail_N, log_partition_N, chunk,
        )  # fmt: skip
        ctx.softcap, ctx.asks_vocabulary = softcap, asks_vocabulary
        if asks_vocabulary:
            mean_N -= log_partition_N
            entropy_N += log_partition_N
        best_of_tail_R, log_tail_R = best_of_tail_N[decisions_R], log_tail_N[decisions_R]
        ctx.mark_non_differentiable(best_of_tail_R, entropy_N)
        return logprobs_M, top_logprobs_RK, log_tail_R, best_of_tail_R, mean_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_M, gradient_RK, gradient_tail_R, _, gradient_mean_N, _ = gradients
        hidden_NH, weight_VH, bias_V, rows_M, targets_M, decisions_R, top_ids_RK = (
            ctx.saved_tensors[:7]
        )
        top_logprobs_RK, log_tail_N, log_partition_N, last_chunk = ctx.saved_tensors[7:]
        total_N = torch.zeros_like(log_tail_N).index_add_(0, rows_M, gradient_M)
        total_N[decisions_R] += gradient_RK.sum(-1) + gradient_tail_R
        if ctx.asks_vocabulary:
            total_N += gradient_mean_N
        of_tail_N = total_N.mul(-log_tail_N.exp())
        of_tail_N[decisions_R] += gradient_tail_R
        of_head_RK = gradient_RK - total_N[decisions_R, None] * top_logprobs_RK.exp()
        log_rest_N = log_tail_N + log_partition_N
        # a frozen head, as with LoRA, needs no gradient: do not allocate [V, H] for nothing
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        gradient_hidden = torch.empty_like(hidden_NH) if of_hidden else None
        gradient_weight = torch.zeros_like(weight_VH, dtype=total_N.dtype) if of_weight else None
        gradient_bias = torch.zeros_like(bias_V, dtype=total_N.dtype) if of_bias else None
        for chunk_start, chunk_end in chunks(len(hidden_NH)):
            hidden = hidden_NH[chunk_start:chunk_end]
            is_last = chunk_end == len(hidden_NH)
            chunk = last_chunk if is_last else F.linear(hidden, weight_VH, bias_V)
            of_logits = torch.empty_like(chunk)
            for start, end in pieces(chunk_start, chunk):
                piece = slice(start - chunk_start, end - chunk_start)
                logits = widened(chunk[piece], ctx.softcap)
                slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square_()
                gradient = logits.sub_(log_rest_N[start:end, None]).exp_()
                gradient.mul_(of_tail_N[start:end, None])
                here = within(decisions_R, start, end)
                gradient[decisions_R[here, None] - start, top_ids_RK[here]] = of_head_RK[here]
                if ctx.asks_vocabulary:
                    gradient += gradient_mean_N[start:end, None] / len(weight_VH)
                pairs = within(rows_M, start, end)
                at = (rows_M[pairs] - start, targets_M[pairs])
                gradient.index_put_(at, gradient_M[pairs], accumulate=True)
                if slope is not None:
                    gradient.mul_(slope)
                if gradient_bias is not None:
                    gradient_bias += gradient.sum(0)
                of_logits[piece] = gradient
            if gradient_hidden is not None:
                gradient_hidden[chunk_start:chunk_end] = of_logits @ weight_VH
            if gradient_weight is not None:
                gradient_weight += of_logits.T @ hidden
        return (
            gradient_hidden,
            None if gradient_weight is None else gradient_weight.to(weight_VH.dtype),
            None if gradient_bias is None else gradient_bias.to(bias_V.dtype),
            *[None] * 6,
        )


def head_logits(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, softcap: float | None
) -> Tensor:
    """Logits [N, V] of a few positions, in at least float32; `softcap` bounds them smoothly."""
    return widened(F.linear(hidden_NH, weight_VH, bias_V), softcap)


@torch.no_grad()
def most_probable(
    hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, softcap: float | None, k: int
) -> Tensor:
    """Ids [R, k] of the most probable tokens at each position, in descending order."""
    none = torch.empty(0, k, dtype=torch.int64, device=hidden_RH.device)
    parts = [
        head_logits(hidden_RH[start:end], weight_VH, bias_V, softcap).topk(k).indices
        for start, end in chunks(len(hidden_RH))
    ]
    return torch.cat([none, *parts])


def widened(logits: Tensor, softcap: float | None) -> Tensor:
    """A copy of raw logits in at least float32, bounded smoothly by `softcap` if there is one."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def chunks(num_rows: int) -> list[tuple[int, int]]:
    """Start and end of each chunk of rows."""
    starts = range(0, num_rows, CHUNK_ROWS)
    return [(start, min(start + CHUNK_ROWS, num_rows)) for start in starts]


def pieces(start: int, chunk: Tensor) -> list[tuple[int, int]]:
    """Start and end of each piece of a chunk that begins at row `start`; on a GPU, one piece."""
    size = CACHED_ROWS if chunk.device.type == "cpu" else len(chunk)
    end = start + len(chunk)
    return [(first, min(first + size, end)) for first in range(start, end, size)]


def within(rows: Tensor, start: int, end: int) -> Tensor:
    """Indices of the rows in [start, end)."""
    return ((rows >= start) & (rows < end)).nonzero()[:, 0]


def widest(weight: Tensor) -> Tensor:
    """Return a weight in at least float32, without gradient."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
