"""The models that learn in a training, and those of live signals that run beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from firstkd.errors import ConfigError
from firstkd.models.folders import load_model, load_tokenizer, read_config
from firstkd.models.needs import Place
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.section import Precision
from firstkd.settings import Settings
from firstkd.signals.base import LiveSignal, Pairs
from firstkd.signals.live import Peer, Watched
from firstkd.signals.target import Source, StoredStates
from firstkd.terms.base import Pairing, Term
from firstkd.train.player import Player, Players
from tasks.layout import before_training, model_folder


class Live(NamedTuple):
    """What a term needs to learn from a live signal."""

    signal: LiveSignal
    pairs: Pairs
    """Places whose hidden states are compared: the learner's and the signal model's."""
    modules: nn.ModuleList
    """Modules trained for the term, alongside the model."""


LiveTerms = dict[str, Live]
"""By term name."""


def live_signals(settings: Settings, name: str) -> dict[str, tuple[Term, LiveSignal]]:
    """Return a model's terms that learn from live signals, with those signals, by term name."""
    terms = settings.models[name].learn or {}
    return {
        term_name: (term, signal)
        for term_name, term in terms.items()
        if term.signal is not None
        and isinstance(signal := settings.signals[term.signal], LiveSignal)
        and signal.is_live
    }


def make_player(
    root: Path,
    settings: Settings,
    networks: Mapping[str, PreTrainedModel],
    stored: Mapping[str, Mapping[str, Source]],
    tokenizer: Any,
    precision: Precision,
) -> Player | Players:
    """Return what learns: one model, or several that also learn from one another.

    `stored` contains what stored signals give, by model and term. Raises ConfigError for hidden
    states that cannot be compared, or tokens of another tokenizer.
    """
    live = {name: open_live(root, settings, name, tokenizer) for name in networks}
    peers = {name: Peer(network) for name, network in networks.items()}
    frozen = load_frozen(root, live, precision)
    players, between = {}, {}
    for name, network in networks.items():
        terms = settings.models[name].learn
        assert terms is not None
        beside = {term: found.modules for term, found in live[name].items()}
        states = {term: s for term, s in stored[name].items() if isinstance(s, StoredStates)}
        for term, source in states.items():
            widths = network.config.hidden_size, source.width
            beside[term] = fresh_modules(settings, terms[term], 1, widths)
        of_decisions = [term for term in terms if term not in beside]
        beside |= {t: fresh_modules(settings, terms[t], 0, (0, 0)) for t in of_decisions}
        sources = {**stored[name], **sources_from(frozen, live[name])}
        places = seen(live, name) | dict.fromkeys(
            ours for found in live[name].values() for ours, _ in found.pairs
        )
        places |= dict.fromkeys(source.place for source in states.values())
        bandit = None
        if arms := settings.models[name].bandit:
            from firstkd.terms.exp3 import Exp3

            bandit = Exp3(arms, settings.runtime.seed)
        players[name] = Player(network, terms, sources, beside, [*places], bandit)
        between[name] = sources_from(peers, live[name])
    if len(players) == 1:
        return players.popitem()[1]
    return Players(players, peers, between)


def open_live(root: Path, settings: Settings, name: str, tokenizer: Any) -> LiveTerms:
    """Return what a model's live terms need.

    Raises ConfigError for hidden states that cannot be compared, or tokens of another tokenizer.
    """
    opened = {}
    for term_name, (term, signal) in live_signals(settings, name).items():
        key = f"params.yaml: models.{name}.learn.{term_name}"
        other = before_training(root, settings, name, signal.of)
        if vocabulary_digest(load_tokenizer(other)) != vocabulary_digest(tokenizer):
            raise ConfigError(
                f"{key}.from: signals.{term.signal} uses a different tokenizer than {name}; learn "
                "from a stored signal of choices, whose texts mean the same to both"
            )
        pairing = pairing_of(root, settings, name, signal.of)
        pairs = term.pairs(pairing, key)
        modules = fresh_modules(settings, term, len(pairs), pairing.widths)
        opened[term_name] = Live(signal, pairs, modules)
    return opened


def fresh_modules(
    settings: Settings, term: Term, pairs: int, widths: tuple[int, int]
) -> nn.ModuleList:
    """Return the modules to train for a term: the same, whatever was drawn while models loaded."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.runtime.seed)
        return term.modules(pairs, widths)


def pairing_of(root: Path, settings: Settings, name: str, other: str) -> Pairing:
    ours = read_config(before_training(root, settings, name, name))
    theirs = read_config(before_training(root, settings, name, other))
    cuts = settings.lineage.cuts(name, other)
    kept = None if cuts is None else [*range(theirs.num_hidden_layers)]
    for cut in cuts or ():
        assert kept is not None
        kept = [kept[i] for i in settings.models[cut].init.kept(model_folder(root, cut))]
    return Pairing(
        layers=(ours.num_hidden_layers, theirs.num_hidden_layers),
        widths=(ours.hidden_size, theirs.hidden_size),
        kept=kept,
    )


def load_frozen(
    root: Path, live: Mapping[str, LiveTerms], precision: Precision
) -> dict[str, Watched]:
    """Load the models of live signals that do not learn in this training."""
    names = dict.fromkeys(found.signal.of for terms in live.values() for found in terms.values())
    return {
        name: Watched(load_model(model_folder(root, name), precision), seen(live, name))
        for name in names
        if name not in live
    }


def seen(live: Mapping[str, LiveTerms], of: str) -> dict[Place, None]:
    """Return the places that terms read in a model that they learn from, each once."""
    found = [found for terms in live.values() for found in terms.values()]
    return dict.fromkeys(
        theirs for each in found if each.signal.of == of for _, theirs in each.pairs
    )


def sources_from(running: Mapping[str, Peer | Watched], terms: LiveTerms) -> dict[str, Source]:
    """Return what terms match from these models, by term name."""
    return {
        name: found.signal.source(running[found.signal.of], found.pairs)
        for name, found in terms.items()
        if found.signal.of in running
    }
