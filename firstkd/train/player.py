"""A model with what it learns from."""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from firstkd.data.packing import Batch
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.signals.target import Source, States, Target
from firstkd.terms.base import Sum, Term


class Player(nn.Module):
    """One forward pass of the model serves all of its terms.

    A module, so that an engine that shards weights sees everything that is trained: the model's
    own parameters, and those that terms have beside it (`beside`), which end with the training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        learn: Mapping[str, Term],
        sources: Mapping[str, Source],
        beside: Mapping[str, nn.ModuleList] | None = None,
        places: Sequence[int] = (),
    ) -> None:
        """`sources` holds what each term that learns from a signal is to match, by its name.

        `places` are those at which terms look at the model's hidden states.
        """
        super().__init__()
        self.scorer = ResponseScorer(model)
        self.learn = dict(learn)
        self.sources = dict(sources)
        self.places = list(places)
        self._beside = dict(beside or {})
        # under numbers, since not every name of a term can be an attribute
        self.beside = nn.ModuleList(self._beside.values())

    def targets(self, batch: Batch) -> dict[str, Target | States]:
        """Look up, or ask, what the terms are to match on a batch."""
        return {name: source.of(batch) for name, source in self.sources.items()}

    def forward(self, batch: Batch, targets: Mapping[str, Target | States]) -> dict[str, Sum]:
        asked = {
            name: target.ids_RK
            for name, term in self.learn.items()
            if term.asks_ids and isinstance(target := targets[name], Target)
        }
        view = View(self.scorer, batch, asked, self.places, self._beside)
        return {name: term(view, name, targets.get(name)) for name, term in self.learn.items()}
