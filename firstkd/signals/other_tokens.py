"""Stored tokens of the same texts from a tokenizer other than the student's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from firstkd.data.packing import Batch
from firstkd.data.spans import Spans, chunks
from firstkd.signals.store import Records
from firstkd.signals.target import OtherTokens, Stored, target_of


@dataclass(frozen=True)
class StoredBeside:
    """Stored tokens of right responses, cut by a tokenizer other than the student's."""

    stored: Stored
    ours: Records
    """Per training question, the chunk within it of each of the student's tokens; −1 for none
    (firstkd/data/spans.py)."""
    theirs: Records
    """The same for the signal's tokens."""

    @classmethod
    def of_spans(cls, stored: Stored, ours: Sequence[Spans], theirs: Sequence[Spans]) -> Self:
        """`ours` and `theirs` say where the tokens of each training question's answer lie."""
        numbers = [chunks(*pair) for pair in zip(ours, theirs, strict=True)]
        return cls(stored, *(_records(side) for side in zip(*numbers, strict=True)))

    def of(self, batch: Batch) -> OtherTokens:
        index_B, device = batch.index_B.cpu(), batch.input_ids_BL.device
        records = self.stored.store.of_examples(self.stored.positions_Q[index_B])
        decisions = self.stored.signal.decisions(records, self.stored.store.facts)
        probabilities = self.stored.recalibration.apply(decisions)
        _, probabilities_TK, tail_T = target_of(decisions, probabilities, batch)
        ours, theirs = self.ours.reordered(index_B), self.theirs.reordered(index_B)
        chunk_R, chunk_T, total = _numbered(ours, theirs)
        return OtherTokens(
            probabilities_TK=probabilities_TK,
            tail_T=tail_T,
            gold_logprob_T=decisions.gold_logprob.to(device),
            counts_B=theirs.counts.to(device),
            chunk_R=chunk_R.to(device),
            chunk_T=chunk_T.to(device),
            chunks=total,
        )


def _records(chunks_Q: Sequence[Sequence[int]]) -> Records:
    counts = torch.tensor([len(numbers) for numbers in chunks_Q])
    numbers = torch.tensor([number for numbers in chunks_Q for number in numbers])
    return Records({"chunk": numbers.to(torch.int32)}, counts)


def _numbered(ours: Records, theirs: Records) -> tuple[Tensor, Tensor, int]:
    """Number the chunks of several questions consecutively, and count them."""
    local_R, example_R = ours.columns["chunk"].long(), ours.example_R
    count_B = torch.zeros(len(ours.counts), dtype=torch.int64)
    count_B.index_reduce_(0, example_R, local_R + 1, "amax")
    first_B, total = count_B.cumsum(0) - count_B, int(count_B.sum())
    local_T, example_T = theirs.columns["chunk"].long(), theirs.example_R
    return (
        (local_R + first_B[example_R]).masked_fill(local_R < 0, total),
        (local_T + first_B[example_T]).masked_fill(local_T < 0, total),
        total,
    )
