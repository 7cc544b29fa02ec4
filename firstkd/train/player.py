"""A model with what it learns from."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from firstkd.data.packing import Batch
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.signals.target import Stored, Target
from firstkd.terms.base import Sum, Term


class Player(nn.Module):
    """One forward pass of the model serves all of its terms.

    A module, so that an engine that shards weights sees everything that is trained; its parameters
    are the model's own.
    """

    def __init__(
        self, model: PreTrainedModel, learn: Mapping[str, Term], sources: Mapping[str, Stored]
    ) -> None:
        """`sources` holds what each term that learns from a signal is to match, by its name."""
        super().__init__()
        self.scorer = ResponseScorer(model)
        self.learn = dict(learn)
        self.sources = dict(sources)

    def targets(self, batch: Batch) -> dict[str, Target]:
        """Look up what the terms are to match on a batch."""
        return {name: source.of(batch) for name, source in self.sources.items()}

    def forward(self, batch: Batch, targets: Mapping[str, Target]) -> dict[str, Sum]:
        asked = {name: targets[name].ids_RK for name, term in self.learn.items() if term.asks_ids}
        view = View(self.scorer, batch, asked)
        return {name: term(view, name, targets.get(name)) for name, term in self.learn.items()}
