"""The models of live signals, which run beside a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firstkd.errors import ConfigError
from firstkd.models.folders import load_model, load_tokenizer, read_config
from firstkd.models.tokenizers import vocabulary_digest
from firstkd.settings import Settings
from firstkd.signals.base import LiveSignal, Pairs
from firstkd.signals.live import Watched
from firstkd.signals.target import Source
from firstkd.terms.base import Pairing, Term
from tasks.layout import model_folder

LiveTerms = dict[str, tuple[Term, LiveSignal]]


def live_terms(settings: Settings, name: str) -> LiveTerms:
    """Return the terms of a model that learn from live signals, with these, by the term's name."""
    terms = settings.models[name].learn or {}
    return {
        term_name: (term, signal)
        for term_name, term in terms.items()
        if term.signal is not None
        and isinstance(signal := settings.signals[term.signal], LiveSignal)
        and signal.is_live
    }


def open_live(
    root: Path, settings: Settings, name: str, start: Path, tokenizer: Any, precision: Any
) -> tuple[dict[str, Source], dict[str, nn.ModuleList], list[int]]:
    """Return what live terms are to match and what is trained for them, by the term's name, and the
    places at which they look at the hidden states of `name`.

    Raises ConfigError for hidden states that cannot be compared, or tokens of another tokenizer.
    """
    terms = live_terms(settings, name)
    pairs: dict[str, Pairs] = {}
    beside: dict[str, nn.ModuleList] = {}
    for term_name, (term, signal) in terms.items():
        key = f"params.yaml: models.{name}.learn.{term_name}"
        other = model_folder(root, signal.of)
        if vocabulary_digest(load_tokenizer(other)) != vocabulary_digest(tokenizer):
            raise ConfigError(
                f"{key}.from: signals.{term.signal} is of the tokens of another tokenizer than "
                f"{name}'s; learn from a stored signal of choices, whose texts mean the same to "
                "both"
            )
        pairing = pairing_of(root, settings, name, signal.of, start)
        pairs[term_name] = term.pairs(pairing, key)
        with torch.random.fork_rng():  # the same start, whatever was drawn while models were loaded
            torch.manual_seed(settings.runtime.seed)
            beside[term_name] = term.modules(len(pairs[term_name]), pairing.widths)
    models = {
        of: Watched(load_model(model_folder(root, of), precision), _places(terms, pairs, of))
        for of in dict.fromkeys(signal.of for _, signal in terms.values())
    }
    sources = {
        term_name: signal.source(models[signal.of], pairs[term_name])
        for term_name, (_, signal) in terms.items()
    }
    return sources, beside, sorted({ours for found in pairs.values() for ours, _ in found})


def pairing_of(root: Path, settings: Settings, name: str, other: str, start: Path) -> Pairing:
    ours, theirs = read_config(start), read_config(model_folder(root, other))
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


def _places(terms: LiveTerms, pairs: Mapping[str, Pairs], of: str) -> set[int]:
    return {
        theirs
        for term_name, (_, signal) in terms.items()
        if signal.of == of
        for _, theirs in pairs[term_name]
    }
