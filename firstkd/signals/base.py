"""Signals: what is known about one model, or several, on some examples.

A signal is its own settings; each kind is a subclass in a separate module. Whatever a signal is
made from, its records are read as decisions (`Knowledge`): recalibrations are fitted to them, and
terms compare a student with them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.data.view import PromptView
from firstkd.errors import ArtifactError
from firstkd.models.needs import Needs, Place
from firstkd.section import Name, Section

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from firstkd.models.settings import ModelSettings
    from firstkd.models.view import View
    from firstkd.recalibration.base import Recalibration
    from firstkd.signals.asked import AskedTeacher
    from firstkd.signals.columns import Layout
    from firstkd.signals.knowledge import Knowledge
    from firstkd.signals.live import Running
    from firstkd.signals.store import Records, SignalStore
    from firstkd.signals.target import Source

Pairs = Sequence[tuple[Place, Place]]
Facts = Mapping[str, Any]
"""What a store's manifest says besides its columns, such as the vocabulary's size."""


class Signal(Section):
    kind: str
    needs: ClassVar[Needs] = Needs()
    decides: ClassVar[str]
    """`token`: the token at each position of a response; `choice`: the answer to a question;
    `state`: nothing, its records are a model's hidden states."""
    has_token_ids: ClassVar[bool] = False
    """Whether its records contain token ids or are per token: they fit one tokenizer only."""

    is_own_text: ClassVar[bool] = False
    """Whether it covers answers that its model has written: a student that learns from it reads
    them in place of the right ones."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that are run for it."""
        return ()

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that it combines."""
        return ()

    @property
    def tempers(self) -> bool:
        """Whether the signals that it combines are first tempered, each at its own temperature."""
        return False

    @property
    def is_live(self) -> bool:
        """Whether its model runs in the training that learns from it, with nothing stored."""
        return False

    @property
    def is_recalibrated(self) -> bool:
        """Whether it stores decisions to which recalibrations can be fitted."""
        return not self.is_live and not self.is_sampled and self.decides != "state"

    @property
    def is_sampled(self) -> bool:
        """Whether its candidates are draws, with their shares in place of probabilities."""
        return False

    @property
    def keeps_tails(self) -> bool:
        """Whether the tail outside the candidates, if there is one, can be tempered exactly."""
        return True

    def check(
        self, signals: "Mapping[str, Signal]", models: "Mapping[str, ModelSettings]"
    ) -> str | None:
        """Return what is wrong with the signals and models it is made from, if anything."""
        return None

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        """Return the columns of its store; only hidden states need `hidden_size`."""
        raise NotImplementedError

    def facts(self, vocabulary_size: int) -> dict[str, Any]:
        """Return what readers must know about the store as a whole."""
        return {}

    def describe(self, store: "SignalStore") -> dict[str, Any]:
        """Return what is worth knowing about a store, for the report and the records."""
        return {"examples": len(store.keys), "records": len(store), "bytes": store.bytes}

    def warning(self, described: Mapping[str, Any]) -> str | None:
        """Return a warning about a store, from what `describe` returned, if one is due."""
        return None

    def decisions(self, records: "Records", facts: Facts) -> "Knowledge":
        """Return the decisions in these records, in the same order."""
        raise NotImplementedError

    def records_of(self, question: Question) -> int:
        """Return how many records a question has."""
        raise NotImplementedError

    def stand_in(self, question: Question) -> Question:
        """Return the question as it may be learned from; used before the signal is captured."""
        return question

    def decisions_of(self, question: Question) -> int:
        """Return how many decisions a question's records make up."""
        return self.records_of(question)

    def is_right(
        self, decisions: "Knowledge", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Tensor":
        """Return [R, K], True at each right candidate of these questions' decisions."""
        raise NotImplementedError


class LiveSignal(Signal):
    """A signal that a single forward pass of one model yields."""

    of: Name
    """The model to ask."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def source(self, watched: "Running", pairs: Pairs) -> "Source":
        """Return its source in a training, backed by the model that runs there.

        `pairs` are the places that a term compares: the student's and the model's.
        """
        raise NotImplementedError


class CapturedSignal(LiveSignal):
    """A signal that can also be stored."""

    live: bool = False
    """Whether to run the model in each training instead of storing what it says."""
    view: PromptView = PromptView()
    """What its model reads beyond what the student does."""

    @model_validator(mode="after")
    def _views_are_of_stored_decisions(self) -> Self:
        if self.view.is_plain:
            return self
        if self.is_live:
            raise ValueError(
                "view: a live signal's model reads what the student reads; set live: false"
            )
        if self.decides == "state":
            raise ValueError(
                "view: states are compared token by token, so both must read the same; choose "
                "a signal of choices or tokens"
            )
        return self

    @property
    def is_live(self) -> bool:
        return self.live

    def source(self, watched: "Running", pairs: Pairs) -> "Source":
        from firstkd.signals.live import LiveDecisions

        return LiveDecisions(self, watched)

    def capture(self, view: "View", vocabulary_size: int) -> "Records":
        """Return the records of the batch's questions, in batch order."""
        raise NotImplementedError

    def ask(
        self, teacher: "AskedTeacher", examples: Sequence[Example], questions: Sequence[Question]
    ) -> "Records":
        """Ask a model behind a server these questions and return their records."""
        raise NotImplementedError


class CombinedSignal(Signal):
    """A signal computed from the stores of others."""

    def combine(
        self, members: "Sequence[Path]", temperatures: "Sequence[Recalibration]" = ()
    ) -> "Records":
        """Return the records of the examples in the members' stores, in order.

        `temperatures` are the members', if it `tempers`. Raises ArtifactError unless all stores
        contain the same examples in the same order.
        """
        import torch

        from firstkd.signals.store import SignalStore

        first, *others = stores = [SignalStore(folder) for folder in members]
        for store in others:
            if not torch.equal(store.keys, first.keys):
                raise ArtifactError(
                    f"{store.folder} has different examples from {first.folder}; run its stage "
                    "again"
                )
        records = [store.whole() for store in stores]
        if self.tempers:
            pairs = zip(records, temperatures, strict=True)
            records = [self.tempered(*pair) for pair in pairs]
        return self.combined(first.keys, records)

    def tempered(self, records: "Records", temperature: "Recalibration") -> "Records":
        """Return a member's records at its own temperature."""
        raise NotImplementedError

    def combined(self, keys: "Tensor", members: "Sequence[Records]") -> "Records":
        """Combine the members' records of the examples with these keys."""
        raise NotImplementedError
