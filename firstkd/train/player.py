"""Who learns in a training run: a model with its terms, or several that learn from one another."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from firstkd.data.packing import Batch
from firstkd.errors import ConfigError
from firstkd.models.needs import Place
from firstkd.models.scoring import Pass, ResponseScorer
from firstkd.models.view import View
from firstkd.signals.live import Peer
from firstkd.signals.target import AnyTarget, Source
from firstkd.terms.adaptive import Adaptive
from firstkd.terms.base import Sum, Term

if TYPE_CHECKING:
    from firstkd.terms.exp3 import Exp3

Curve = list[dict[str, float]]


class Adapting(NamedTuple):
    """What adapts in rounds, and the model whose answers it adapts to."""

    adaptive: Adaptive
    scorer: ResponseScorer


class Player(nn.Module):
    """A model and its terms, which all share one forward pass.

    It is a module so that an engine that shards weights sees everything that is trained: the
    model's own parameters, and those of its terms (`beside`), which are discarded after training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        learn: Mapping[str, Term],
        sources: Mapping[str, Source],
        beside: Mapping[str, nn.ModuleList] | None = None,
        places: Sequence[Place] = (),
        bandit: "Exp3 | None" = None,
    ) -> None:
        """`sources` maps each term that learns from a signal to what it must match.

        `places` are where terms look at the model's hidden states, and `bandit` draws the terms
        that take turns, if any do.
        """
        super().__init__()
        self.scorer = ResponseScorer(model)
        self.learn = dict(learn)
        self.sources = dict(sources)
        self.places = list(places)
        self.bandit = bandit
        self._beside = dict(beside or {})
        # by number, since not every term's name can be an attribute
        self.beside = nn.ModuleList(self._beside.values())

    def targets(self, batch: Batch) -> dict[str, AnyTarget]:
        """Look up or compute what the terms must match on a batch."""
        return {name: source.of(batch) for name, source in self.sources.items()}

    @property
    def adaptive(self) -> dict[str, Adapting]:
        """Whatever adapts to calibration questions, by the name its state is saved under."""
        found: dict[str, Adaptive] = {
            f"learn.{name}": module
            for name, modules in self._beside.items()
            for module in modules
            if isinstance(module, Adaptive)
        }
        if self.bandit:
            found["bandit"] = self.bandit
        return {name: Adapting(adaptive, self.scorer) for name, adaptive in found.items()}

    def weights(self, progress: float) -> dict[str, float]:
        """Return each term's weight at this share of the training steps."""
        weights = {name: term.weight_at(progress) for name, term in self.learn.items()}
        return self.bandit.weighed(weights) if self.bandit else weights

    @property
    def shown(self) -> dict[str, float]:
        """What the curve shows besides the terms."""
        return self.bandit.shown if self.bandit else {}

    def curve_of(self, name: str, curve: Curve) -> Curve:
        """Return a model's part of the curve: all of it, since there is only one model."""
        return curve

    def scorer_of(self, name: str) -> ResponseScorer:
        """Return a model by name: there is only one."""
        return self.scorer

    def recompute_layers(self) -> None:
        """Recompute layers in the backward pass instead of keeping them in memory.

        Raises ConfigError if a term matches anything within the layers.
        """
        if any(place != self.scorer.depth for place in self.places):
            raise ConfigError(
                "machine.gradient_checkpointing: hidden states or attention inside layers are "
                "matched, but get no gradient when layers are recomputed; set it to false, or "
                "match only the last hidden states (layers: last)"
            )
        # The reentrant kind runs the modules' hooks again, which ZeRO 3 needs to gather weights.
        # It passes gradients on only if its input requires them.
        self.scorer.backbone.enable_input_require_grads()
        self.scorer.backbone.gradient_checkpointing_enable({"use_reentrant": True})

    def forward(
        self,
        batch: Batch,
        targets: Mapping[str, AnyTarget],
        progress: float = 0.0,
        passed: Pass | None = None,
    ) -> dict[str, Sum]:
        """Return each term's sum; `passed` is the layers' output for the batch, if known."""
        asked = {
            name: asked
            for name, term in self.learn.items()
            if (asked := term.asks(targets.get(name))) is not None
        }
        asks_vocabulary = any(term.asks_vocabulary for term in self.learn.values())
        seen = self.places, self._beside, passed, asks_vocabulary, progress
        view = View(self.scorer, batch, asked, *seen)
        return {name: term(view, name, targets.get(name)) for name, term in self.learn.items()}


class Players(nn.Module):
    """Models that train together, each also learning from the others' pass over the same batch.

    Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384, sec. 3), all models in one step as in
    codistillation (Anil et al. 2018, arXiv 1804.03235): each makes one pass, which trains it and,
    without gradient, teaches the others. Terms are named MODEL.TERM.
    """

    def __init__(
        self,
        players: Mapping[str, Player],
        peers: Mapping[str, Peer],
        between: Mapping[str, Mapping[str, Source]],
    ) -> None:
        """`peers` is each model as the others see it, and `between` maps model and term to what
        it must match of another model."""
        super().__init__()
        self._players = dict(players)
        # a list, since not every model's name can be an attribute
        self.players = nn.ModuleList(players.values())
        self._peers = dict(peers)
        self._between = dict(between)
        self.learn = {
            f"{name}.{term}": found
            for name, player in players.items()
            for term, found in player.learn.items()
        }

    def targets(self, batch: Batch) -> dict[str, AnyTarget]:
        """Look up or compute what the terms must match of models that do not learn here."""
        return {
            f"{name}.{term}": target
            for name, player in self._players.items()
            for term, target in player.targets(batch).items()
        }

    def scorer_of(self, name: str) -> ResponseScorer:
        return self._players[name].scorer

    @property
    def adaptive(self) -> dict[str, Adapting]:
        return {
            f"{name}.{part}": found
            for name, player in self._players.items()
            for part, found in player.adaptive.items()
        }

    def weights(self, progress: float) -> dict[str, float]:
        return {name: term.weight_at(progress) for name, term in self.learn.items()}

    @property
    def shown(self) -> dict[str, float]:
        return {}

    def recompute_layers(self) -> None:
        for player in self._players.values():
            player.recompute_layers()

    def forward(
        self, batch: Batch, targets: Mapping[str, AnyTarget], progress: float = 0.0
    ) -> dict[str, Sum]:
        passes = {}
        for name, player in self._players.items():
            passes[name] = player.scorer.states(batch, player.places)
            self._peers[name].shown = View(player.scorer, batch, passed=passes[name].detached())
        sums = {}
        for name, player in self._players.items():
            own = {term: targets[f"{name}.{term}"] for term in player.sources}
            own |= {term: source.of(batch) for term, source in self._between[name].items()}
            for term, found in player(batch, own, progress, passes[name]).items():
                sums[f"{name}.{term}"] = found
        return sums

    def curve_of(self, name: str, curve: Curve) -> Curve:
        """Return one model's part of the curve: its own terms, and the loss they add up to."""
        parts = []
        for number, point in enumerate(curve):
            part = {
                key.removeprefix(f"{name}."): value
                for key, value in point.items()
                if "." not in key or key.startswith(f"{name}.")
            }
            weights = self._players[name].weights(number / len(curve))
            part["loss"] = sum(weight * part[key] for key, weight in weights.items())
            parts.append(part)
        return parts
