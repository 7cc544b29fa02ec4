"""The most probable tokens at each position: computed, stored and read back.

Ids take 16 bits, and 4 more for vocabularies above 65,536; log-probabilities are float16.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from firstkd.models.head import chunks, pieces, widened, within
from firstkd.models.view import View
from firstkd.signals.columns import KEPT
from firstkd.signals.knowledge import FIELDS, Knowledge
from firstkd.signals.select import Select
from firstkd.signals.sparse import uniforms, with_own_ids
from firstkd.signals.store import Records
from firstkd.signals.tail import bends

BLOCK = 128
"""Neighbouring tokens per block; the search for top-k first compares only the blocks' maxima."""

Position = dict[int, float]
"""Log-probabilities by token id."""
Keep = Callable[[Tensor, slice], Knowledge]
"""Returns what to keep of log-probabilities [R, V] of a slice of the batch's decisions."""


def token_records(view: View, select: Select, tail_nodes: int) -> Records:
    """Return the token decisions of the batch's right responses, packed as they are stored."""
    batch = view.batch
    question_M = batch.response_of_M[batch.is_gold_M] // batch.choice_mask_BC.shape[1]
    counts = question_M.bincount(minlength=len(batch.index_B)).cpu()
    uniform_R = uniforms(batch, counts) if select.is_sampled else torch.empty(int(counts.sum()))

    def keep(logprobs_RV: Tensor, decisions: slice) -> Knowledge:
        return select.kept(logprobs_RV, tail_nodes, uniform_R[decisions])

    return packed(head_with(view, keep), counts)


def packed(knowledge: Knowledge, counts: Tensor) -> Records:
    """Return decisions as records, `counts` of them per example, with ids split as stored."""
    columns = {name: getattr(knowledge, name) for name in FIELDS}
    columns[KEPT] = torch.isfinite(knowledge.top_logprobs).sum(-1)
    if knowledge.vocabulary_size > 2**16:
        columns["top_ids_high"] = _pack_nibbles(knowledge.top_ids >> 16)
        columns["top_ids"] = knowledge.top_ids & 0xFFFF
    return Records(columns, counts)


def token_decisions(records: Records, vocabulary_size: int, draws: int = 0) -> Knowledge:
    """Return int64 ids and float32 reals; `draws` is their number per decision, if it has any."""
    stored = records.columns
    top_ids = stored["top_ids"].long()
    if "top_ids_high" in stored:
        top_ids |= _unpack_nibbles(stored["top_ids_high"], top_ids.shape[1]) << 16
    rest = {name: stored[name].float() for name in FIELDS[1:] if name in stored}
    rest.setdefault("tail_bends", torch.empty(len(top_ids), 0))
    if draws:
        # undo float16's rounding of shares, which are whole numbers / draws; they leave no tail
        rest["top_logprobs"] = (rest["top_logprobs"].exp() * draws).round().div(draws).log()
        rest["log_tail_mass"] = torch.full((len(top_ids),), -torch.inf)
        rest["gold_logprob"] = torch.full((len(top_ids),), torch.nan)
    return with_own_ids(Knowledge(top_ids=top_ids, vocabulary_size=vocabulary_size, **rest))


def _pack_nibbles(values_RK: Tensor) -> Tensor:
    """Pack two values below 16 per byte, the first in the low half; uint8 [R, ⌈K/2⌉]."""
    padded = torch.nn.functional.pad(values_RK, (0, values_RK.shape[1] % 2))
    return (padded[:, 0::2] | padded[:, 1::2] << 4).to(torch.uint8)


def _unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    wide = packed.long()
    return torch.stack([wide & 15, wide >> 4], dim=-1).flatten(1)[:, :count]


def head_with(view: View, keep: Keep) -> Knowledge:
    """Return the token decisions of the right responses.

    One pass of the head over the N supervised positions; only one chunk of its logits exists at
    a time, and what is computed on it stays in the cache.
    """
    batch, head = view.batch, view.scorer.head
    hidden_NH, weight_VH, bias_V = head.operands(view.hidden_NH)
    logprobs_M = hidden_NH.new_empty(len(batch.rows_M))
    is_gold_N = torch.zeros(len(hidden_NH), dtype=torch.bool, device=hidden_NH.device)
    gold_rows = batch.rows_M[batch.is_gold_M]
    is_gold_N[gold_rows] = True
    # decisions at the right responses' tokens, which are in the order of their positions
    parts: list[Knowledge] = []
    decided = 0
    log_partition_N = hidden_NH.new_empty(len(hidden_NH))
    for start, end in chunks(len(hidden_NH)):
        chunk = F.linear(hidden_NH[start:end], weight_VH, bias_V)
        for first, last in pieces(start, chunk):
            logits = widened(chunk[first - start : last - start], head.softcap)
            log_partition = logits.logsumexp(-1)
            log_partition_N[first:last] = log_partition
            is_gold = is_gold_N[first:last]
            found = logits[is_gold].sub_(log_partition[is_gold, None])
            parts.append(keep(found, slice(decided, decided + len(found))))
            decided += len(found)
        inside = within(batch.rows_M, start, end)
        rows = batch.rows_M[inside]
        scored = widened(chunk[rows - start, batch.targets_M[inside]], head.softcap)
        logprobs_M[inside] = scored - log_partition_N[rows]
    gold_logprob = logprobs_M[batch.is_gold_M]
    return replace(Knowledge.concatenate(parts), gold_logprob=gold_logprob).cpu()


def knowledge_of(logprobs_RV: Tensor, top_k: int, tail_nodes: int) -> Knowledge:
    """Return the top-k and the tail of these log-probabilities, which are overwritten.

    The right token is unknown here: its log-probability is NaN.
    """
    vocabulary_size = logprobs_RV.shape[1]
    top_logprobs, top_ids = _top_k(logprobs_RV, top_k)
    tail = logprobs_RV.scatter_(1, top_ids, -torch.inf)
    log_tail_mass = tail.logsumexp(-1)
    return Knowledge(
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        log_tail_mass=log_tail_mass,
        gold_logprob=torch.full_like(log_tail_mass, torch.nan),
        tail_bends=bends(tail, log_tail_mass, top_k, tail_nodes),
        vocabulary_size=vocabulary_size,
    )


def _top_k(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row and their indices, largest first.

    They all lie in the k blocks of neighbours with the largest maxima, so one cheap pass finds
    where to look; torch.topk alone takes many.
    """
    size = values_NV.shape[1]
    blocks = size // BLOCK
    if blocks <= 2 * k:
        values, ids = values_NV.topk(k)
        return values, ids
    blocked = values_NV[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    best = blocked.amax(-1).topk(k).indices
    candidates = blocked.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    offsets = torch.arange(BLOCK, device=best.device)
    ids = (best[:, :, None] * BLOCK + offsets).flatten(1)
    if rest := size - blocks * BLOCK:  # the last, partial block
        candidates = torch.cat([candidates, values_NV[:, -rest:]], dim=1)
        last = torch.arange(size - rest, size, device=ids.device)
        ids = torch.cat([ids, last.expand(len(ids), -1)], dim=1)
    values, where = candidates.topk(k)
    return values, ids.gather(1, where)


def knowledge_of_positions(
    records: Sequence[tuple[Position, int]], top_k: int, vocabulary_size: int
) -> Knowledge:
    """Return the top-k of positions that others have computed, each with its right token.

    The rest of the mass is the tail's. If the right token is not among a position's tokens, its
    probability stays unknown (NaN).
    """
    top_ids = torch.zeros(len(records), top_k, dtype=torch.int64)
    top_logprobs = torch.full((len(records), top_k), -torch.inf, dtype=torch.float64)
    gold = torch.full((len(records),), torch.nan)
    for row, (position, right) in enumerate(records):
        kept = sorted(position.items(), key=lambda item: (-item[1], item[0]))[:top_k]
        top_ids[row, : len(kept)] = torch.tensor([token for token, _ in kept])
        top_logprobs[row, : len(kept)] = torch.tensor([value for _, value in kept])
        gold[row] = position.get(right, math.nan)
    tail = (1 - top_logprobs.exp().sum(-1)).clamp_min(0)
    return Knowledge(
        top_ids=top_ids,
        top_logprobs=top_logprobs.float(),
        log_tail_mass=tail.log().float(),
        gold_logprob=gold,
        tail_bends=torch.empty(len(records), 0),
        vocabulary_size=vocabulary_size,
    )
