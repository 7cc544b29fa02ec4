"""Stores for tests, captured from a tiny model or written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from firstkd.data.prompts import Question
from firstkd.signals.base import CapturedSignal
from firstkd.signals.capture import Capture
from firstkd.signals.choices import Choices, choice_records
from firstkd.signals.hidden_states import HiddenStates
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.settings import CaptureSettings
from firstkd.signals.store import Records, SignalStore, write_manifest, write_shard
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import packed, token_decisions
from firstkd.train.distributed import Ranks

VOCABULARY = 400
"""Of the tiny model."""
CHOICES = Choices(kind="choices", of="m")
STATES = HiddenStates(kind="hidden_states", of="m", live=False)
TOKENS = Tokens(kind="tokens", of="m", select={"kind": "top_k", "k": 5})


def capture_into(
    folder: Path,
    signal: CapturedSignal,
    model: PreTrainedModel,
    questions: Sequence[Question],
    ranks: Sequence[Ranks] = (Ranks(),),
) -> SignalStore:
    """Capture the questions, two a shard, under their places as keys."""
    settings = CaptureSettings(
        precision="fp32", micro_batch_size=2, micro_batch_tokens=8192, shard_examples=2
    )
    for each in ranks:
        run = Capture(signal, VOCABULARY, settings, each, model.config.hidden_size)
        run.write(model, questions, range(len(questions)), folder)
    run.finish(folder, {})
    return SignalStore(folder)


def decisions_of(signal: CapturedSignal, store: SignalStore, *examples: int) -> Any:
    return signal.decisions(store.of_examples(torch.tensor(examples)), store.facts)


def as_stored(knowledge: Knowledge, signal: Tokens) -> Knowledge:
    """Return what a store gives back: one example's decisions, in the store's dtypes."""
    records = packed(knowledge, torch.tensor([len(knowledge)]))
    layout = signal.layout(knowledge.vocabulary_size)
    columns = {name: records.columns[name].to(column.dtype) for name, column in layout.items()}
    return token_decisions(Records(columns, records.counts), knowledge.vocabulary_size)


def write_choices(folder: Path, logprobs_BC: torch.Tensor, keys: Sequence[int]) -> Path:
    folder.mkdir(parents=True)
    write_shard(folder, 0, CHOICES.layout(0), choice_records(logprobs_BC), keys)
    write_manifest(folder, CHOICES.layout(0), "choices", {})
    return folder
