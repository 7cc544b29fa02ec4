"""Targets of a term on a batch: a signal's decisions, recalibrated, or hidden states."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from firstkd.data.packing import Batch
from firstkd.models.needs import Place
from firstkd.recalibration.base import Recalibration
from firstkd.signals.base import Signal
from firstkd.signals.knowledge import Knowledge
from firstkd.signals.store import SignalStore


class Target(NamedTuple):
    """R decisions with K candidates each."""

    ids_RK: Tensor
    """Token ids or choice indices."""
    probabilities_RK: Tensor
    """0 where there is no candidate."""
    tail_R: Tensor
    """Probability of everything that is not a candidate."""


class States(NamedTuple):
    """Hidden states, for each pair of places that a term compares."""

    pairs: list[tuple[Place, Tensor]]
    """The student's place, and its target there: [T, H], all tokens of the batch."""


class OtherTokens(NamedTuple):
    """What a model says at the T tokens into which its tokenizer cuts the right responses.

    The student's cuts the same texts into R tokens.
    """

    probabilities_TK: Tensor
    """The probabilities of its most probable tokens, in any order."""
    tail_T: Tensor
    """Total probability of all others."""
    gold_logprob_T: Tensor
    """Log-probability of the token itself."""
    counts_B: Tensor
    """Number of its tokens per question."""
    chunk_R: Tensor
    """The chunk, numbered across the batch, of each of the student's tokens; `chunks` for those
    in none."""
    chunk_T: Tensor
    """The same for the model's tokens."""
    chunks: int
    """Number of chunks."""


AnyTarget = Target | States | OtherTokens


class Source(Protocol):
    """A signal as a training sees it."""

    def of(self, batch: Batch) -> "AnyTarget":
        """Return the target for a batch, on the batch's device."""


def target_of(decisions: Knowledge, probabilities: Tensor, batch: Batch) -> Target:
    """Return decisions with these probabilities [R, K], on the batch's device."""
    # the tail gains what a recalibration takes from the candidates in total
    taken = decisions.top_logprobs.exp().sum(-1) - probabilities.sum(-1)
    tail = (decisions.tail_mass + taken).clamp_min(0)
    found = Target(decisions.top_ids, probabilities, tail)
    return Target(*(tensor.to(batch.input_ids_BL.device) for tensor in found))


@dataclass(frozen=True)
class StoredStates:
    """Hidden states after the final norm, read from a store."""

    store: SignalStore
    positions_Q: Tensor
    """Where each training question's example is in the store."""
    place: Place
    """The student's place that is compared with them."""

    @property
    def width(self) -> int:
        width = self.store.layout["state"].width
        assert width is not None
        return width

    def of(self, batch: Batch) -> States:
        records = self.store.of_examples(self.positions_Q[batch.index_B.cpu()])
        states_TH = records.columns["state"].to(batch.input_ids_BL.device)
        return States([(self.place, states_TH)])


@dataclass(frozen=True)
class Stored:
    """A signal whose records are read from a store."""

    signal: Signal
    store: SignalStore
    recalibration: Recalibration
    positions_Q: Tensor
    """Where each training question's example is in the store."""

    def of(self, batch: Batch) -> Target:
        records = self.store.of_examples(self.positions_Q[batch.index_B.cpu()])
        decisions = self.signal.decisions(records, self.store.facts)
        return target_of(decisions, self.recalibration.apply(decisions), batch)
