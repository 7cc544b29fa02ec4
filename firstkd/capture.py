"""Capture the teacher's knowledge: one forward pass, then head and top-k on what is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.knowledge import (
    Kind,
    Knowledge,
    example_key,
    storage_dtypes,
    write_manifest,
    write_shard,
)
from firstkd.objective import choice_scores, head_chunks
from firstkd.packing import Batch, batches_by_length, pack
from firstkd.prompts import Question
from firstkd.scoring import ResponseScorer
from firstkd.settings import ExtractSettings


@torch.inference_mode()
def capture(
    model: PreTrainedModel,
    questions: Sequence[Question],
    settings: ExtractSettings,
    folder: Path,
    identity: dict[str, Any],
) -> None:
    """Write the stores `folder`/token and, where questions have choices, `folder`/choice.

    Memory holds one shard of examples at a time, whatever their number.
    """
    scorer = ResponseScorer(model).eval()
    vocabulary = model.config.vocab_size
    num_choices = max(len(question.responses) for question in questions)
    kinds: dict[Kind, int] = {"token": settings.top_k}
    if num_choices > 1:
        kinds["choice"] = num_choices
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
    with tqdm(total=len(questions), desc=f"capture {folder.name}", unit="question") as progress:
        for number, start in enumerate(range(0, len(questions), settings.shard_examples)):
            block = questions[start : start + settings.shard_examples]
            captured = _capture_block(scorer, block, settings, kinds, progress)
            keys = torch.tensor([example_key(question) for question in block])
            for kind, parts in captured.items():
                records = torch.tensor([len(part) for part in parts], dtype=torch.int32)
                dtypes = storage_dtypes(kind, vocabulary)
                knowledge = Knowledge.concatenate(parts)
                write_shard(folder / kind, number, knowledge, keys, records, dtypes)
    for kind, top_k in kinds.items():
        write_manifest(folder / kind, kind, top_k, vocabulary, identity)


def _capture_block(
    scorer: ResponseScorer,
    block: Sequence[Question],
    settings: ExtractSettings,
    kinds: dict[Kind, int],
    progress: Any,
) -> dict[Kind, list[Knowledge]]:
    """Records per kind and example of the block, in its order."""
    device = scorer.head.weight.device
    captured: dict[Kind, dict[int, Knowledge]] = {kind: {} for kind in kinds}
    for index in batches_by_length(block, settings.micro_batch_size):
        batch = pack(block, index).to(device)
        logprobs, token = head_with_topk(scorer, batch, settings.top_k)
        counts = [len(block[i].responses[block[i].gold]) for i in index]  # type: ignore[index]
        offsets = torch.tensor([0, *counts]).cumsum(0)
        for position, i in enumerate(index):
            rows = torch.arange(int(offsets[position]), int(offsets[position + 1]))
            captured["token"][i] = token[rows]
        if "choice" in kinds:
            choice = _choice_knowledge(batch, logprobs, kinds["choice"])
            has_choices = batch.choice_mask_BC.sum(-1).cpu() > 1
            for position, i in enumerate(index):
                rows = torch.tensor([position] if has_choices[position] else [], dtype=torch.int64)
                captured["choice"][i] = choice[rows]
        progress.update(len(index))
    return {kind: [parts[i] for i in range(len(block))] for kind, parts in captured.items()}


def head_with_topk(scorer: ResponseScorer, batch: Batch, top_k: int) -> tuple[Tensor, Knowledge]:
    """Log-probabilities [M] of the scored tokens, and the token decisions of right responses.

    One pass of the head over the N supervised positions serves both; a chunk of its logits is all
    that ever exists.
    """
    hidden_NH = scorer.hidden(batch)
    logprobs_M = hidden_NH.new_empty(len(batch.rows_M), dtype=torch.float32)
    gold_rows, gold_targets = batch.rows_M[batch.is_gold_M], batch.targets_M[batch.is_gold_M]
    parts = []
    for start, end, inside in head_chunks(hidden_NH, batch.rows_M):
        logits = scorer.head.logits(hidden_NH[start:end])
        log_partition = logits.logsumexp(-1)
        rows = batch.rows_M[inside] - start
        logprobs_M[inside] = logits[rows, batch.targets_M[inside]] - log_partition[rows]
        here = (gold_rows >= start) & (gold_rows < end)
        gold = gold_rows[here] - start
        top = logits[gold].topk(top_k)
        top_logprobs = top.values - log_partition[gold, None]
        parts.append(
            Knowledge(
                top_ids=top.indices.cpu(),
                top_logprobs=top_logprobs.cpu(),
                tail_mass=(1 - top_logprobs.exp().sum(-1)).clamp_min(0).cpu(),
                gold_logprob=(logits[gold, gold_targets[here]] - log_partition[gold]).cpu(),
            )
        )
    return logprobs_M, Knowledge.concatenate(parts)


def _choice_knowledge(batch: Batch, logprobs_M: Tensor, num_choices: int) -> Knowledge:
    """One choice decision per question [B], its candidates padded to `num_choices`."""
    scores = choice_scores(logprobs_M, batch.response_of_M, batch.choice_mask_BC)
    logprobs = scores.log_softmax(-1)
    gold = logprobs.gather(-1, batch.gold_B[:, None])[:, 0]
    missing = num_choices - logprobs.shape[1]
    logprobs = torch.nn.functional.pad(logprobs, (0, missing), value=-torch.inf)
    return Knowledge(
        top_ids=torch.arange(num_choices).expand(len(logprobs), -1),
        top_logprobs=logprobs.cpu(),
        tail_mass=torch.zeros(len(logprobs)),
        gold_logprob=gold.cpu(),
    )
