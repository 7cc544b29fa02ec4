"""Trainings of the tiny model beside a wider teacher, whose hidden states and relations it matches.

Run as  torchrun --nproc-per-node 2 -m tests.firstkd.train.watching MODEL OUT STAGE…

which trains under each ZeRO stage and writes the curve and weights to OUT/STAGE.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.signals.hidden_states import HiddenStates
from firstkd.signals.live import Watched
from firstkd.terms.adversarial import Adversarial
from firstkd.terms.hidden import Hidden
from firstkd.terms.relation import Relation
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.player import Player
from tests.firstkd.train.trainings import GOLD, SHARED, trained

PAIRS = [(1, 2), (2, 3)]
STATES = HiddenStates(kind="hidden_states", of="teacher")


def hidden(kind=Hidden):
    settings = {"kind": "hidden", "from": "states", "layers": PAIRS, "distance": "mse"}
    return kind.model_validate(settings)


def adversarial(kind=Adversarial):
    return kind.model_validate({"kind": "adversarial", "from": "states", "layers": PAIRS})


def relation():
    settings = {"kind": "relation", "from": "states", "layers": PAIRS, "form": "angle"}
    return Relation.model_validate(settings)


def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=400,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
        return LlamaForCausalLM(config)


def watching(model, term=None):
    """Return a player that learns from gold, and by a term (`hidden`) from the teacher's states."""
    return beside_teacher(model, {"states": term or hidden()})


def relating(model):
    """Return a player that learns how questions relate as well."""
    return beside_teacher(model, {"states": hidden(), "angles": relation()})


def beside_teacher(model, learn):
    watched = Watched(teacher(), [theirs for _, theirs in PAIRS])
    beside = {name: term.modules(len(PAIRS), (32, 48)) for name, term in learn.items()}
    places = [ours for ours, _ in PAIRS]
    sources = {name: STATES.source(watched, PAIRS) for name in learn}
    return Player(model, {**GOLD, **learn}, sources, beside, places)


def main(tiny_model: Path, out: Path, stages: list[str]) -> None:
    for stage in stages:
        model, curve = trained(
            tiny_model, out / stage, player=relating, **SHARED, zero_stage=int(stage)
        )
        if join_ranks().is_first:
            (out / stage / "curve.json").write_text(json.dumps(curve))
            model.save_pretrained(out / stage)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    leave_ranks()
