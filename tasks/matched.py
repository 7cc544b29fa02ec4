"""Open what the terms of a model match in stored signals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from firstkd.data.examples import Example, example_key
from firstkd.data.prompts import Question
from firstkd.data.spans import Spans, right_spans
from firstkd.errors import ConfigError
from firstkd.files import read_json
from firstkd.models.folders import load_tokenizer, read_config
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.recalibration.table import from_json
from firstkd.settings import Settings
from firstkd.signals.other_tokens import StoredBeside
from firstkd.signals.store import SignalStore
from firstkd.signals.target import Source, Stored, StoredStates
from firstkd.terms.base import Term
from tasks.layout import before_training, model_folder, recalibration_file, signal_folder


@dataclass(frozen=True)
class Matched:
    """What stored signals say about the questions that a model learns from."""

    root: Path
    settings: Settings
    examples: Sequence[Example]
    questions: Sequence[Question]
    """The examples as the model's tokenizer encodes them."""
    tokenizer: Any

    def of_terms(self, name: str) -> dict[str, Source]:
        """Return what each term of a model matches, by term name.

        Raises ConfigError if ids of another tokenizer would be compared, and ArtifactError for a
        store that has other examples or lacks what a term needs.
        """
        return {
            term_name: self.source(name, term_name, term, term.signal)
            for term_name, term in (self.settings.models[name].learn or {}).items()
            if term.signal is not None and term.signal in self.settings.lineage.stored
        }

    def source(self, name: str, term_name: str, term: Term, of: str) -> Source:
        signal = self.settings.signals[of]
        store = SignalStore(signal_folder(self.root, of, "train"))
        if term.same_tokens and store.identity["vocabulary"] != vocabulary_digest(self.tokenizer):
            raise ConfigError(
                f"params.yaml: models.{name}.learn.{term_name}.from: signals.{of} holds token ids "
                f"from a different tokenizer than {name}'s; learn from a signal of choices, whose "
                "texts mean the same to both, or use alm, which compares pieces of text"
            )
        for column in term.columns:
            store.require(column)
        ids = [example.id for example in self.examples]
        positions = store.positions([example_key(example) for example in self.examples], ids)
        spans = self.spans_of(of) if term.other_tokens else None
        counts = [signal.records_of(question) for question in self.questions]
        if spans is not None:
            counts = [len(each.ends) for each in spans]
        store.check_counts(positions, counts, ids)
        if signal.decides == "state":
            start = before_training(self.root, self.settings, name, name)
            return StoredStates(store, positions, read_config(start).num_hidden_layers)
        fitted = {"kind": term.recalibration}
        if signal.is_recalibrated:
            fitted = read_json(recalibration_file(self.root, of, str(term.recalibration)))
        stored = Stored(signal, store, from_json(fitted), positions)
        return stored if spans is None else StoredBeside.of_spans(stored, self.spans, spans)

    @cached_property
    def spans(self) -> list[Spans]:
        """Where the tokens of the right responses are."""
        return right_spans(self.examples, self.tokenizer, self.settings.prompt)

    def spans_of(self, signal: str) -> list[Spans]:
        """The same with the tokenizer of a signal."""
        reader = self.settings.lineage.read_with(signal)
        tokenizer = load_tokenizer(model_folder(self.root, reader))
        return right_spans(self.examples, tokenizer, self.settings.prompt)
