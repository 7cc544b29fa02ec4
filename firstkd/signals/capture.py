"""Capture the teacher's knowledge: one forward pass, then head and top-k on what is kept."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.packing import Batch, batches_by_length, pack, packed_length
from firstkd.data.prompts import Question
from firstkd.memory import memory_explained
from firstkd.models.head import chunks, pieces, widened, within
from firstkd.models.scoring import ResponseScorer
from firstkd.signals.knowledge import (
    Knowledge,
    Layout,
    example_key,
    shard_path,
    write_manifest,
    write_shard,
)
from firstkd.signals.settings import ExtractSettings
from firstkd.signals.tail import bends
from firstkd.terms.divergences import choice_scores
from firstkd.train.distributed import Ranks

BLOCK = 128
"""Of neighbouring tokens, of which only the largest is looked at first in the search for top-k."""


def layouts(
    questions: Sequence[Question], settings: ExtractSettings, vocabulary_size: int
) -> list[Layout]:
    """The stores that these questions fill: of tokens and, where there are choices, of choices."""
    found = [
        Layout(
            kind="token",
            top_k=settings.top_k,
            vocabulary_size=vocabulary_size,
            tail_nodes=settings.tail_nodes,
        )
    ]
    num_choices = max(len(question.responses) for question in questions)
    if num_choices > 1:
        found.append(Layout(kind="choice", top_k=num_choices, vocabulary_size=vocabulary_size))
    return found


@torch.inference_mode()
def capture(
    model: PreTrainedModel,
    questions: Sequence[Question],
    settings: ExtractSettings,
    vocabulary_size: int,
    folder: Path,
    ranks: Ranks,
) -> list[Layout]:
    """Write the shards of `folder`/token and, where questions have choices, `folder`/choice.

    A shard that is there already is kept: what was interrupted goes on. Each rank writes every
    so-many-th block of examples. Memory holds one block, whatever the number of examples.
    `vocabulary_size` is the tokenizer's; rows that pad the head beyond it are no tokens.
    """
    scorer = ResponseScorer(model, exact=True).eval()
    stores = layouts(questions, settings, vocabulary_size)
    for layout in stores:
        (folder / layout.kind).mkdir(parents=True, exist_ok=True)
    blocks = [
        (number, questions[start : start + settings.shard_examples])
        for number, start in enumerate(range(0, len(questions), settings.shard_examples))
        if number % ranks.world_size == ranks.rank
        and not all(shard_path(folder / layout.kind, number).exists() for layout in stores)
    ]
    tokens = sum(packed_length(question) for _, block in blocks for question in block)
    with tqdm(
        total=tokens, desc=f"capture {folder.name}", unit="tok", unit_scale=True, disable=not tokens
    ) as progress:
        for number, block in blocks:
            captured = _capture_block(scorer, block, settings, stores, progress)
            keys = torch.tensor([example_key(question) for question in block])
            for layout, (knowledge, records) in zip(stores, captured, strict=True):
                write_shard(folder / layout.kind, number, layout, knowledge, keys, records)
    return stores


def finish(folder: Path, stores: Sequence[Layout], identity: dict[str, Any]) -> None:
    """Turn what all ranks have captured into stores: each shard in its manifest."""
    for layout in stores:
        write_manifest(folder / layout.kind, layout, identity)


@memory_explained("while knowledge was captured")
def _capture_block(
    scorer: ResponseScorer,
    block: Sequence[Question],
    settings: ExtractSettings,
    stores: Sequence[Layout],
    progress: Any,
) -> list[tuple[Knowledge, Tensor]]:
    """Per store the records of the block in its order, and how many each example has."""
    device = scorer.head.weight.device
    tokens, choices = [], []
    order_tokens, order_choices = [], []
    for index in batches_by_length(block, settings.micro_batch_size, settings.micro_batch_tokens):
        batch = pack(block, index).to(device)
        logprobs, knowledge = head_with_topk(scorer, batch, stores[0])
        tokens.append(knowledge)
        index_B = torch.tensor(index)
        order_tokens.append(index_B.repeat_interleave(_response_lengths(block, index)))
        if len(stores) > 1:
            has_choices = (batch.choice_mask_BC.sum(-1) > 1).cpu()
            choices.append(_choice_knowledge(batch, logprobs, stores[1].top_k)[has_choices])
            order_choices.append(index_B[has_choices])
        progress.update(sum(packed_length(block[i]) for i in index))
    return [
        _in_order(Knowledge.concatenate(parts), torch.cat(order), len(block))
        for parts, order in ((tokens, order_tokens), (choices, order_choices))
        if parts
    ]


def _response_lengths(block: Sequence[Question], index: Sequence[int]) -> Tensor:
    """Tokens of the right response of each question."""
    return torch.tensor([len(block[i].responses[block[i].gold]) for i in index])  # type: ignore[index]


def _in_order(
    knowledge: Knowledge, example_R: Tensor, num_examples: int
) -> tuple[Knowledge, Tensor]:
    records = torch.bincount(example_R, minlength=num_examples).to(torch.int32)
    return knowledge[example_R.argsort(stable=True)], records


def head_with_topk(
    scorer: ResponseScorer, batch: Batch, layout: Layout
) -> tuple[Tensor, Knowledge]:
    """Log-probabilities [M] of the scored tokens, and the token decisions of right responses.

    One pass of the head over the N supervised positions serves both; a chunk of its logits is all
    that ever exists, and what is computed on it stays in the cache.
    """
    head = scorer.head
    hidden_NH, weight_VH, bias_V = head.operands(scorer.hidden(batch))
    weight_VH = weight_VH[: layout.vocabulary_size]
    bias_V = None if bias_V is None else bias_V[: layout.vocabulary_size]
    logprobs_M = hidden_NH.new_empty(len(batch.rows_M), dtype=torch.float32)
    is_gold_N = torch.zeros(len(hidden_NH), dtype=torch.bool, device=hidden_NH.device)
    gold_rows = batch.rows_M[batch.is_gold_M]
    is_gold_N[gold_rows] = True
    # of the right responses' tokens, which lie in the order of their positions
    parts = []
    log_partition_N = hidden_NH.new_empty(len(hidden_NH), dtype=torch.float32)
    for start, end in chunks(len(hidden_NH)):
        chunk = F.linear(hidden_NH[start:end], weight_VH, bias_V)
        for first, last in pieces(start, chunk):
            logits = widened(chunk[first - start : last - start], head.softcap)
            log_partition = logits.logsumexp(-1)
            log_partition_N[first:last] = log_partition
            is_gold = is_gold_N[first:last]
            parts.append(knowledge_of(logits[is_gold].sub_(log_partition[is_gold, None]), layout))
        inside = within(batch.rows_M, start, end)
        rows = batch.rows_M[inside]
        scored = widened(chunk[rows - start, batch.targets_M[inside]], head.softcap)
        logprobs_M[inside] = scored - log_partition_N[rows]
    knowledge = replace(Knowledge.concatenate(parts), gold_logprob=logprobs_M[batch.is_gold_M])
    return logprobs_M, knowledge.cpu()


def knowledge_of(logprobs_RV: Tensor, layout: Layout) -> Knowledge:
    """What is kept of these log-probabilities, which are overwritten.

    Of the right token nothing is known here: its log-probability is NaN.
    """
    top_logprobs, top_ids = _top_k(logprobs_RV, layout.top_k)
    tail = logprobs_RV.scatter_(1, top_ids, -torch.inf)
    log_tail_mass = tail.logsumexp(-1)
    return Knowledge(
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        log_tail_mass=log_tail_mass,
        gold_logprob=torch.full_like(log_tail_mass, torch.nan),
        tail_bends=bends(tail, log_tail_mass, layout.top_k, layout.tail_nodes),
        vocabulary_size=layout.vocabulary_size,
    )


def _top_k(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their indices, largest first.

    They all lie in the k blocks of neighbours with the largest maxima, so one cheap pass finds
    where to look, which torch.topk alone takes many for.
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
    if rest := size - blocks * BLOCK:  # a last block that is not full
        candidates = torch.cat([candidates, values_NV[:, -rest:]], dim=1)
        last = torch.arange(size - rest, size, device=ids.device)
        ids = torch.cat([ids, last.expand(len(ids), -1)], dim=1)
    values, where = candidates.topk(k)
    return values, ids.gather(1, where)


def _choice_knowledge(batch: Batch, logprobs_M: Tensor, num_choices: int) -> Knowledge:
    """One choice decision per question [B], its candidates padded to `num_choices`."""
    scores = choice_scores(logprobs_M, batch.response_of_M, batch.choice_mask_BC)
    missing = num_choices - scores.shape[1]
    logprobs = F.pad(scores.log_softmax(-1), (0, missing), value=-torch.inf)
    return Knowledge.of_choices(logprobs.cpu(), batch.gold_B.cpu())
