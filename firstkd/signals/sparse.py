"""Decisions with varying numbers of candidates: those that hold a given mass, and draws.

Legend: R decisions, K candidates at most, N draws, V vocabulary.
"""

import zlib
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firstkd.data.packing import Batch
from firstkd.signals.knowledge import Knowledge

BLOCK = 128
"""Block size of running sums on a GPU."""


def cut_at(knowledge: Knowledge, mass: float) -> Knowledge:
    """Keep the fewest most probable candidates that hold this mass (above 0); the others go to the
    tail."""
    probabilities_RK = knowledge.top_logprobs.exp()
    before_RK = running_sum(probabilities_RK) - probabilities_RK
    is_cut_RK = before_RK >= mass
    log_cut_R = knowledge.top_logprobs.masked_fill(~is_cut_RK, -torch.inf).logsumexp(-1)
    return replace(
        knowledge,
        top_logprobs=knowledge.top_logprobs.masked_fill(is_cut_RK, -torch.inf),
        log_tail_mass=torch.logaddexp(knowledge.log_tail_mass, log_cut_R),
    )


def drawn(logprobs_RV: Tensor, draws: int, uniform_R: Tensor) -> Knowledge:
    """Draw tokens systematically: at the points (i + u)/N of the cumulative distribution.

    The candidates' probabilities are their shares of the draws, and nothing is left for the tail.
    """
    cumulative_RV = running_sum(logprobs_RV.double().exp_())
    steps_N = torch.arange(draws, device=logprobs_RV.device)
    points_RN = (steps_N + uniform_R.to(logprobs_RV.device)[:, None]) / draws
    ids_RN = torch.searchsorted(cumulative_RV, points_RN * cumulative_RV[:, -1:], right=True)
    ids_RN = ids_RN.clamp_max(logprobs_RV.shape[1] - 1)
    # draws of the same token are adjacent
    is_first_RN = torch.ones_like(ids_RN, dtype=torch.bool)
    is_first_RN[:, 1:] = ids_RN[:, 1:] != ids_RN[:, :-1]
    count_RN = (ids_RN[:, :, None] == ids_RN[:, None]).sum(-1) * is_first_RN
    # most frequent first, like most probable first elsewhere
    count_RN, order_RN = count_RN.sort(dim=-1, descending=True, stable=True)
    none_R = torch.full_like(logprobs_RV[:, 0], -torch.inf)
    return Knowledge(
        top_ids=ids_RN.gather(-1, order_RN),
        top_logprobs=(count_RN / draws).log().to(logprobs_RV.dtype),
        log_tail_mass=none_R,
        gold_logprob=torch.full_like(none_R, torch.nan),
        tail_bends=logprobs_RV.new_empty(len(logprobs_RV), 0),
        vocabulary_size=logprobs_RV.shape[1],
    )


def running_sum(values_RK: Tensor) -> Tensor:
    """Return the sums of all values up to each, along the last dimension.

    On a GPU torch adds them in an order that varies from run to run, and refuses to if results
    must be reproducible; so there, sums within blocks and over whole blocks are matrix products.
    """
    if values_RK.device.type == "cpu":
        return values_RK.cumsum(-1)
    size = values_RK.shape[-1]
    blocks_RNB = F.pad(values_RK, (0, -size % BLOCK)).unflatten(-1, (-1, BLOCK))
    within_RNB = blocks_RNB @ values_RK.new_ones(BLOCK, BLOCK).triu()
    totals_RN = within_RNB[..., -1]
    before_RN = totals_RN @ values_RK.new_ones(totals_RN.shape[-1], totals_RN.shape[-1]).triu(1)
    sums_RK: Tensor = (within_RNB + before_RN[..., None]).flatten(-2)[..., :size]
    return sums_RK.contiguous()


def uniforms(batch: Batch, counts_B: Tensor) -> Tensor:
    """Return [R] float64 numbers in [0, 1), one per decision; a question has `counts_B` of them.

    They depend on a question's tokens alone: batch, shard and process do not change the draws.
    """
    parts = []
    for row, is_token, count in zip(
        batch.input_ids_BL.cpu(), batch.is_token_BL.cpu(), counts_B.tolist(), strict=True
    ):
        seed = zlib.crc32(row[is_token].numpy().tobytes())
        parts.append(np.random.default_rng(seed).random(count))
    return torch.from_numpy(np.concatenate(parts))


def with_own_ids(knowledge: Knowledge) -> Knowledge:
    """Give places without a candidate an id that no candidate has: a student scores K distinct
    tokens at each position."""
    exists_RK = torch.isfinite(knowledge.top_logprobs)
    width = exists_RK.shape[1]
    if bool(exists_RK.all()):
        return knowledge
    # at most K of 2K ids are taken
    pool = min(2 * width, knowledge.vocabulary_size)
    taken = torch.zeros(len(exists_RK), pool, dtype=torch.bool)
    inside = exists_RK & (knowledge.top_ids < pool)
    rows = torch.arange(len(exists_RK))[:, None].expand_as(inside)
    taken[rows[inside], knowledge.top_ids[inside]] = True
    free_RK = taken.to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    return replace(knowledge, top_ids=torch.where(exists_RK, knowledge.top_ids, free_RK))
