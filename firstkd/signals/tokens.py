"""The signal `tokens`: a model's most probable tokens at each token of the right response."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.section import Section, Share
from firstkd.signals.base import CapturedSignal, Facts

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.models.view import View
    from firstkd.signals.asked import AskedTeacher
    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.store import Layout, Records, SignalStore

MAX_VOCABULARY = 2**20
DENSE_BYTES = 2
"""Bytes of one probability of the whole distribution, kept as float16."""


class TopK(Section):
    """The k most probable tokens (FIRST, sec. 3.1: five of them hold most of the mass)."""

    kind: Literal["top_k"]
    k: Annotated[int, Field(ge=1, le=64)]


class Tokens(CapturedSignal):
    """24 bytes a token at k = 5 for vocabularies up to 65,536, and 27 above."""

    kind: Literal["tokens"]
    decides: ClassVar[str] = "token"
    has_token_ids: ClassVar[bool] = True

    select: TopK
    """Which tokens are kept."""
    tail_nodes: Literal[0, 8] = 0
    """Values kept of each token's tail (2 bytes each), with which it can be tempered exactly over
    the whole vocabulary; 0 for none."""

    min_mass: Share = 0.5
    """Smallest share of the model's probability that the tokens kept should hold on average."""

    @property
    def keeps_tails(self) -> bool:
        return self.tail_nodes > 0

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        """Raise ConfigError for a vocabulary that is too large, or smaller than what is kept."""
        import torch

        from firstkd.signals.store import Column

        if vocabulary_size > MAX_VOCABULARY:
            raise ConfigError(
                f"its model has a vocabulary of {vocabulary_size:,} tokens, and at most "
                f"{MAX_VOCABULARY:,} can be stored; choose a signal of choices"
            )
        k = self.select.k
        if k >= vocabulary_size:
            raise ConfigError(
                f"select.k: {k} of a vocabulary of {vocabulary_size} tokens leaves no tail; "
                "lower it"
            )
        columns = {"top_ids": Column(torch.uint16, k)}
        if vocabulary_size > 2**16:
            columns["top_ids_high"] = Column(torch.uint8, (k + 1) // 2)
        columns["top_logprobs"] = Column(torch.float16, k)
        columns["log_tail_mass"] = columns["gold_logprob"] = Column(torch.float16)
        if self.tail_nodes:
            columns["tail_bends"] = Column(torch.float16, self.tail_nodes)
        return columns

    def facts(self, vocabulary_size: int) -> dict[str, Any]:
        return {"vocabulary_size": vocabulary_size, "top_k": self.select.k}

    def capture(self, view: "View", vocabulary_size: int) -> "Records":
        from firstkd.signals.top_k import top_k_records

        return top_k_records(view, self.select.k, self.tail_nodes, vocabulary_size)

    def ask(
        self, teacher: "AskedTeacher", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Records":
        import torch

        from firstkd.signals.top_k import knowledge_of_positions, packed

        k, counts = self.select.k, torch.tensor([self.records_of(q) for q in questions])
        found = teacher.positions(questions, k)
        return packed(knowledge_of_positions(found, k, teacher.vocabulary_size), counts)

    def describe(self, store: "SignalStore") -> dict[str, Any]:
        """Return how much of the model's probability the top-1 … top-k hold, and the bytes."""
        import torch

        cumulative = torch.zeros(self.select.k, dtype=torch.float64)
        for shard in store.shards:
            cumulative += shard["top_logprobs"].double().exp().cumsum(-1).sum(0)
        mass = {f"top_{k + 1}": float(m) / len(store) for k, m in enumerate(cumulative)}
        dense = len(store) * store.facts["vocabulary_size"] * DENSE_BYTES
        return {
            **super().describe(store),
            "cumulative_mass": mass,
            "dense_bytes": dense,
            "vocabulary_size": store.facts["vocabulary_size"],
        }

    def warning(self, described: Mapping[str, Any]) -> str | None:
        mass = [*described["cumulative_mass"].values()][-1]
        if mass >= self.min_mass:
            return None
        return (
            f"{self.select.k} tokens hold only {mass:.1%} of the model's probability, less than "
            f"min_mass = {self.min_mass:g}; raise select.k"
        )

    def decisions(self, records: "Records", facts: Facts) -> "Knowledge":
        from firstkd.signals.top_k import token_decisions

        return token_decisions(records, facts["vocabulary_size"])

    def records_of(self, question: Question) -> int:
        return 0 if question.gold is None else len(question.responses[question.gold])

    def is_right(
        self, decisions: "Knowledge", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Tensor":
        import torch

        right = [q.responses[q.gold] for q in questions if q.gold is not None]
        return decisions.is_right(torch.tensor([token for ids in right for token in ids]))
