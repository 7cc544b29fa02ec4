"""What a term is: it compares a student with a signal, or with gold labels, and returns sums.

Each kind of term is a settings class. It says how many units (tokens, questions) it counts in each
question. That depends on the data alone, so a step's loss is divided by the count of the whole
step: no choice of micro-batches or processes changes what is learned.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Discriminator, Field, Tag

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.recalibration.settings import NEED_TAIL_NODES, RecalibrationName
from firstkd.section import Name, Section, Weight
from firstkd.signals.base import Pairs, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget


class Sum(NamedTuple):
    """A term's sum over a micro-batch; divided by the units of the whole step, it is the loss."""

    total: "Tensor"
    units: int
    measures: "dict[str, Tensor]"
    """Other measures of the pass, summed over the same units, without gradient."""


class Pairing(NamedTuple):
    """What a term must know about the two models whose hidden states it compares."""

    layers: tuple[int, int]
    """How many there are: the student's, and the other's."""
    widths: tuple[int, int]
    kept: Sequence[int] | None
    """Which of the other's layers the student has kept, if they differ in nothing else."""


class Ramp(Section):
    """A weight that changes linearly over the training."""

    start: Annotated[float, Field(ge=0, alias="from")]
    to: Annotated[float, Field(ge=0)]

    def at(self, progress: float) -> float:
        return self.start * (1 - progress) + self.to * progress


def _form(weight: Any) -> str:
    return "ramp" if isinstance(weight, dict | Ramp) else "number"


AnyWeight = Annotated[
    Annotated[Weight, Tag("number")] | Annotated[Ramp, Tag("ramp")], Discriminator(_form)
]
"""Discriminated by form, so that an error is about the form that was written."""


class Term(Section):
    """One term of an objective; a kind of term is a subclass in a separate module."""

    kind: str
    needs: ClassVar[Needs] = Needs()
    decides: ClassVar[str | None] = None
    """The kind of decisions it compares (`Signal.decides`); None for terms on gold labels."""
    same_tokens: ClassVar[bool] = False
    """Whether it compares token by token, so that the signal's tokens must be the student's."""
    other_tokens: ClassVar[bool] = False
    """Whether it compares right responses whose tokens may come from another tokenizer."""
    adapts: ClassVar[bool] = False
    """Whether one of its modules adapts to calibration questions (firstkd/terms/adaptive.py)."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of a store that must be known for every record."""

    weight: AnyWeight = 1.0

    @property
    def asks_vocabulary(self) -> bool:
        """Whether it needs the student's mean log-probability or entropy over the vocabulary."""
        return False

    @property
    def signal(self) -> str | None:
        """Name of the signal that it learns from; None for gold labels."""
        return None

    @property
    def recalibration(self) -> str | None:
        """How its signal is recalibrated; None for gold labels."""
        return None

    def misfit(self, signal: Signal) -> str | None:
        """Return why it cannot learn from this signal, or None."""
        if signal.decides == self.decides:
            return None
        return f"it compares {self.decides}s, but signals.{self.signal} holds {signal.decides}s"

    def weight_at(self, progress: float) -> float:
        """Return the weight at this share of the training's steps."""
        return self.weight.at(progress) if isinstance(self.weight, Ramp) else self.weight

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        """Return the places at which it compares hidden states: the student's, and the other's.

        Raises ConfigError, with `key` before the setting's name, if there are no such places.
        """
        return ()

    def modules(self, pairs: int, widths: tuple[int, int]) -> "nn.ModuleList":
        """Return what is trained for it alongside the model without being part of the model.

        `pairs` is the number of pairs of places that it compares, 0 for a term on decisions.
        """
        from torch import nn

        return nn.ModuleList()

    def check_model(self, model: "PreTrainedModel") -> None:
        """Raise ConfigError or ArtifactError for a model that cannot show what it compares.

        The model was made elsewhere; the student, or the signal's model, starts from it.
        """

    def asks(self, target: "AnyTarget | None") -> "Tensor | int | None":
        """Return what the student must score at each token of right responses.

        Ids [R, K], or how many of its own most probable tokens; None for only the token itself.
        """
        return None

    def count(self, question: Question) -> int:
        """Return how many units it counts in a question; 0 if it does not apply."""
        raise NotImplementedError

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        """Compare the student's pass with the target; `name` is the term's name in `learn`."""
        raise NotImplementedError


class SignalTerm(Term):
    """A term that compares the student with a signal, without recalibrating it."""

    from_: Annotated[Name, Field(alias="from")]

    @property
    def signal(self) -> str:
        return self.from_

    @property
    def recalibration(self) -> str:
        return "none"


class SoftTerm(SignalTerm):
    """A term that compares the student with a signal's probabilities."""

    recalibrate: RecalibrationName = "temperature"
    """How the probabilities are recalibrated before the student learns to match them."""

    @property
    def recalibration(self) -> str:
        return self.recalibrate

    def misfit(self, signal: Signal) -> str | None:
        if signal.is_live and self.recalibrate != "none":
            return (
                f"recalibrate: {self.recalibrate} cannot be fitted to signals.{self.from_}, which "
                "is live and stores nothing; set recalibrate: none, or live: false there"
            )
        if signal.is_sampled and self.recalibrate != "none":
            return (
                f"recalibrate: {self.recalibrate} changes probabilities, and signals.{self.from_} "
                "keeps draws; set recalibrate: none, or select: { kind: top_k, … } there"
            )
        if signal.is_own_text and self.recalibrate != "none":
            return (
                f"recalibrate: {self.recalibrate} cannot be fitted to signals.{self.from_}, whose "
                "answers nobody has judged; set recalibrate: none"
            )
        if self.recalibrate in NEED_TAIL_NODES and not signal.keeps_tails:
            return (
                f"recalibrate: {self.recalibrate} needs the tail's nodes; set "
                f"signals.{self.from_}.tail_nodes to 8"
            )
        return super().misfit(signal)
