"""Live signals: their model runs in the training that learns from it, frozen or learning too."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from firstkd.data.packing import Batch
from firstkd.models.folders import vocabulary_size
from firstkd.models.needs import Place
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.signals.base import CapturedSignal
from firstkd.signals.target import States, Target, target_of


class Running(Protocol):
    """A model that runs in a training, as seen by those that learn from it."""

    vocabulary_size: int

    def view(self, batch: Batch) -> View:
        """Return what its pass over a batch shows, without gradient."""
        ...


class Peer:
    """A model that learns in the same training: its own pass is reused, at no extra cost."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.vocabulary_size = vocabulary_size(model)
        self.shown: View | None = None
        """The view of the current batch, set by whoever runs the model."""

    def view(self, batch: Batch) -> View:
        assert self.shown is not None and self.shown.batch is batch
        return self.shown


class Watched:
    """A frozen model; all signals and terms share one pass per batch."""

    def __init__(self, model: PreTrainedModel, places: Iterable[Place]) -> None:
        """`places` are all those at which its hidden states are read."""
        self.scorer = ResponseScorer(model, exact=True).eval().requires_grad_(False)
        self.vocabulary_size = vocabulary_size(model)
        self._places = [*dict.fromkeys(places)]
        self._view: View | None = None

    def view(self, batch: Batch) -> View:
        if self._view is None or self._view.batch is not batch:
            self._view = View(self.scorer, batch, places=self._places)
        return self._view


@dataclass(frozen=True)
class LiveDecisions:
    """Raw decisions: there is no store to fit a recalibration to."""

    signal: CapturedSignal
    watched: Running

    @torch.no_grad()
    def of(self, batch: Batch) -> Target:
        size = self.watched.vocabulary_size
        records = self.signal.capture(self.watched.view(batch), size)
        decisions = self.signal.decisions(records, self.signal.facts(size))
        return target_of(decisions, decisions.top_logprobs.exp(), batch)


@dataclass(frozen=True)
class LiveStates:
    watched: Running
    pairs: tuple[tuple[Place, Place], ...]

    @torch.no_grad()
    def of(self, batch: Batch) -> States:
        view = self.watched.view(batch)
        return States([(student, view.states(teacher)) for student, teacher in self.pairs])
