"""The signal `tokens`: a model's most probable tokens at each token of the right response."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.section import Share
from firstkd.signals.base import CapturedSignal, Facts, Signal
from firstkd.signals.select import AnySelect

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.settings import ModelSettings
    from firstkd.models.view import View
    from firstkd.signals.asked import AskedTeacher
    from firstkd.signals.columns import Layout
    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.store import Records, SignalStore

MAX_VOCABULARY = 2**20
DENSE_BYTES = 2
"""Bytes per probability if the whole distribution were kept, as float16."""


class Tokens(CapturedSignal):
    """Takes 24 bytes per token at top-5 for vocabularies up to 65,536, and 27 above."""

    kind: Literal["tokens"]
    decides: ClassVar[str] = "token"
    has_token_ids: ClassVar[bool] = True

    select: AnySelect
    """Which tokens to keep."""
    tail_nodes: Literal[0, 8] = 0
    """Values kept per token (2 bytes each) for tempering its tail exactly over the whole
    vocabulary; 0 for none."""

    min_mass: Share = 0.5
    """Smallest share of the model's probability that the kept tokens should hold on average."""

    @model_validator(mode="after")
    def _nodes_are_of_a_fixed_tail(self) -> Self:
        if self.tail_nodes and self.select.is_ragged:
            raise ValueError(
                f"tail_nodes: {self.tail_nodes}, but with select.kind {self.select.kind} tails "
                "differ in size; set it to 0, or use select: { kind: top_k, … }"
            )
        return self

    @property
    def keeps_tails(self) -> bool:
        return self.tail_nodes > 0

    @property
    def is_sampled(self) -> bool:
        return self.select.is_sampled

    def check(
        self, signals: Mapping[str, Signal], models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        if self.is_sampled and models[self.of].init.is_served:
            return (
                f"select: kind {self.select.kind} draws from the whole distribution, but a server "
                "returns only the most probable tokens; set { kind: top_k, k: 5 }"
            )
        return None

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        """Raise ConfigError for a vocabulary that is too large, or smaller than what is kept."""
        import torch

        from firstkd.signals.columns import Column

        if vocabulary_size > MAX_VOCABULARY:
            raise ConfigError(
                f"its model has a vocabulary of {vocabulary_size:,} tokens, but at most "
                f"{MAX_VOCABULARY:,} can be stored; choose a signal of choices"
            )
        if (k := self.select.width) >= vocabulary_size:
            raise ConfigError(
                f"select.{self.select.setting}: {k} of a vocabulary of {vocabulary_size} tokens "
                "leaves no tail; lower it"
            )
        columns = dict(self.select.columns(vocabulary_size))
        if not self.is_sampled:
            columns["log_tail_mass"] = columns["gold_logprob"] = Column(torch.float16)
        if self.tail_nodes:
            columns["tail_bends"] = Column(torch.float16, self.tail_nodes)
        return columns

    def facts(self, vocabulary_size: int) -> dict[str, Any]:
        return {"vocabulary_size": vocabulary_size, **self.select.facts}

    def capture(self, view: "View", vocabulary_size: int) -> "Records":
        from firstkd.signals.top_k import token_records

        return token_records(view, self.select, self.tail_nodes)

    def ask(
        self, teacher: "AskedTeacher", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Records":
        import torch

        from firstkd.signals.top_k import packed

        counts = torch.tensor([self.records_of(q) for q in questions])
        found = teacher.positions(questions, self.select.width)
        return packed(self.select.of_positions(found, teacher.vocabulary_size), counts)

    def describe(self, store: "SignalStore") -> dict[str, Any]:
        """Return the store's size, and the model's probability that the top-1 … top-k hold."""
        import torch

        found = {**super().describe(store), "vocabulary_size": store.facts["vocabulary_size"]}
        if self.is_sampled:
            return found
        cumulative = torch.zeros(self.select.width, dtype=torch.float64)
        for top_logprobs in store.parts("top_logprobs"):
            cumulative += top_logprobs.double().exp().cumsum(-1).sum(0)
        mass = {f"top_{k + 1}": float(m) / len(store) for k, m in enumerate(cumulative)}
        dense = len(store) * store.facts["vocabulary_size"] * DENSE_BYTES
        return {
            **found,
            "cumulative_mass": mass,
            "dense_bytes": dense,
        }

    def warning(self, described: Mapping[str, Any]) -> str | None:
        if self.is_sampled:
            return None
        mass = [*described["cumulative_mass"].values()][-1]
        if mass >= self.min_mass:
            return None
        return (
            f"{self.select.width} tokens hold only {mass:.1%} of the model's probability, less "
            f"than min_mass = {self.min_mass:g}; raise select.{self.select.setting}"
        )

    def decisions(self, records: "Records", facts: Facts) -> "Knowledge":
        from firstkd.signals.top_k import token_decisions

        return token_decisions(records, facts["vocabulary_size"], facts.get("draws", 0))

    def records_of(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])

    def is_right(
        self, decisions: "Knowledge", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Tensor":
        import torch

        right = [q.responses[q.gold] for q in questions if q.gold is not None]
        return decisions.is_right(torch.tensor([token for ids in right for token in ids]))
