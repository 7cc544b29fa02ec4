"""Capture a signal shard by shard: run a local model's forward passes, or ask a remote model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from firstkd.data.examples import CHUNK, Example, chunks, example_chunks, example_key
from firstkd.data.packing import batches_by_length, pack, packed_length
from firstkd.data.prompts import Question
from firstkd.memory import memory_explained
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.signals.base import CapturedSignal
from firstkd.signals.columns import Layout
from firstkd.signals.settings import CaptureSettings
from firstkd.signals.store import Records, shard_path, write_manifest, write_shard
from firstkd.train.distributed import Ranks

if TYPE_CHECKING:
    from firstkd.signals.asked import AskedTeacher


@dataclass(frozen=True)
class Shards:
    """The files of a store, for one signal of one model: which are missing, and their manifest."""

    signal: CapturedSignal
    vocabulary_size: int
    """Size of the tokenizer's vocabulary, without rows that only pad the head."""
    settings: CaptureSettings
    ranks: Ranks
    hidden_size: int = 0
    """Width of the model's hidden states; unused by a signal without any."""

    @property
    def shard_examples(self) -> int:
        return self.settings.shard_examples

    @property
    def layout(self) -> Layout:
        return self.signal.layout(self.vocabulary_size, self.hidden_size)

    def parts(self, files: Iterable[Path]) -> Iterator[tuple[int, list[Example]]]:
        """Yield the files' examples, about CHUNK at a time, with the number of their first shard.

        Only one part is in memory at a time.
        """
        shards = max(1, CHUNK // self.shard_examples)
        examples = (each for file in files for chunk in example_chunks(file) for each in chunk)
        for number, part in enumerate(chunks(examples, shards * self.shard_examples)):
            yield number * shards, part

    def missing(self, folder: Path, examples: int, first: int = 0) -> list[tuple[int, slice]]:
        """Return the shards that this rank has yet to write, with the examples in each.

        They are numbered from `first` and dealt to the ranks in turn; an interrupted capture
        resumes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        size = self.shard_examples
        return [
            (number, slice(start, start + size))
            for number, start in enumerate(range(0, examples, size), first)
            if number % self.ranks.world_size == self.ranks.rank
            and not shard_path(folder, number).exists()
        ]

    def finish(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Turn what all ranks have captured into a store: list each shard in its manifest."""
        facts = self.signal.facts(self.vocabulary_size)
        write_manifest(folder, self.layout, self.signal.kind, identity, **facts)


@dataclass(frozen=True)
class Capture(Shards):
    """Captures one signal of one local model."""

    @memory_explained("while capturing a signal", "lower capture.micro_batch_tokens")
    @torch.inference_mode()
    def write(
        self,
        model: PreTrainedModel,
        questions: Sequence[Question],
        keys: Sequence[int],
        folder: Path,
        first: int = 0,
    ) -> None:
        """Write the shards of `folder` from number `first` on, each once, so that an interrupted
        capture resumes.

        `keys` identify the questions' examples.
        """
        if not self.signal.needs.choices:
            questions = [question.gold_only() for question in questions]
        scorer = ResponseScorer(model, exact=True).eval()
        shards = self.missing(folder, len(questions), first)
        tokens = sum(packed_length(q) for _, part in shards for q in questions[part])
        title = _title("capture", folder, first)
        with tqdm(
            total=tokens, desc=title, unit="tok", unit_scale=True, disable=not tokens
        ) as progress:
            for number, part in shards:
                records = self._shard(scorer, questions[part], progress)
                write_shard(folder, number, self.layout, records, keys[part])

    def _shard(
        self, scorer: ResponseScorer, questions: Sequence[Question], progress: Any
    ) -> Records:
        """Return the records of the questions, in their order; a question may have none."""
        asked = [i for i, question in enumerate(questions) if self.signal.records_of(question)]
        counts = torch.zeros(len(questions), dtype=torch.int64)
        if not asked:
            return no_records(self.layout, counts)
        parts, order = [], []
        places = [scorer.depth] if self.signal.needs.states else []
        size, tokens = self.settings.micro_batch_size, self.settings.micro_batch_tokens
        for within in batches_by_length([questions[i] for i in asked], size, tokens):
            index = [asked[i] for i in within]
            batch = pack(questions, index).to(scorer.head.weight.device)
            view = View(scorer, batch, places=places)
            parts.append(self.signal.capture(view, self.vocabulary_size))
            order += index
            progress.update(sum(packed_length(questions[i]) for i in index))
        found = Records.concatenate(parts).reordered(torch.tensor(order).argsort())
        counts[asked] = found.counts.long()
        return Records(found.columns, counts)


def _title(what: str, folder: Path, first: int) -> str:
    return f"{what} {folder.name}, from file {first}" if first else f"{what} {folder.name}"


def no_records(layout: Layout, counts: torch.Tensor) -> Records:
    """Return empty records, for examples that have nothing to keep."""
    columns = {
        name: torch.empty(0, *([column.width] if column.width else []), dtype=column.dtype)
        for name, column in layout.items()
    }
    return Records(columns, counts)


ASKED_EXAMPLES = 64
"""Maximum examples per file of what a server is asked: an interruption loses their answers."""


@dataclass(frozen=True)
class AskedCapture(Shards):
    """Captures one signal of one remote model."""

    @property
    def shard_examples(self) -> int:
        return min(self.settings.shard_examples, ASKED_EXAMPLES)

    def write(
        self,
        teacher: "AskedTeacher",
        examples: Sequence[Example],
        questions: Sequence[Question],
        folder: Path,
        after_shard: Callable[[], None],
        title: str = "",
        first: int = 0,
    ) -> None:
        """Write the shards of `folder` from number `first` on, each once, as `Capture` does."""
        shards = self.missing(folder, len(questions), first)
        total = sum(len(questions[part]) for _, part in shards)
        title = title or _title("ask", folder, first)
        with tqdm(total=total, desc=title, unit="question", disable=not total) as progress:
            for number, part in shards:
                try:
                    records = self.signal.ask(teacher, examples[part], questions[part])
                    keys = [example_key(example) for example in examples[part]]
                    write_shard(folder, number, self.layout, records, keys)
                finally:
                    after_shard()  # what was asked in vain is paid for, too
                progress.update(len(keys))
