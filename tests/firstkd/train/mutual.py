"""Trainings of two models that learn from one another: the tiny one, and a smaller one.

Run as  torchrun --nproc-per-node 2 -m tests.firstkd.train.mutual MODEL OUT STAGE…

which trains under each ZeRO stage and writes the curve to OUT/STAGE.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from firstkd.data.prompts import Question
from firstkd.signals.choices import Choices
from firstkd.signals.hidden_states import HiddenStates
from firstkd.signals.live import Peer
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.gold_choice import GoldChoice
from firstkd.terms.hidden import Hidden
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.player import Player, Players
from tests.firstkd.train.trainings import SHARED, trained

QUESTIONS = [
    Question(str(i), [4, i % 7, 10 + i % 5], [[50 + (i + j) % 9, 60 + j] for j in range(3)], i % 3)
    for i in range(40)
]
CHOICES = Choices(kind="choices", of="other", live=True)
STATES = HiddenStates(kind="hidden_states", of="other")
RIGHT = GoldChoice(kind="gold_choice")
PAIRS = {"left": [(2, 1)], "right": [(1, 2)]}
"""Places of hidden states: of a model of two layers, and of one."""


def from_other(kind=ChoiceKl):
    return kind.model_validate({"kind": "choice_kl", "from": "other", "recalibrate": "none"})


def smaller() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
        return LlamaForCausalLM(config)


def mutual(models, learn, states=False) -> Players:
    """Return two players that learn by `learn` and each from the other's choices, also its states
    if asked."""
    peers = {name: Peer(model) for name, model in models.items()}
    widths = {name: model.config.hidden_size for name, model in models.items()}
    players, between = {}, {}
    for name, other in (("left", "right"), ("right", "left")):
        terms: dict[str, Any] = {"right": RIGHT, "other": learn}
        between[name] = {"other": CHOICES.source(peers[other], ())}
        beside, places = {}, []
        if states:
            terms["states"] = Hidden.model_validate(
                {"kind": "hidden", "from": "states", "layers": PAIRS[name]}
            )
            with torch.random.fork_rng():
                torch.manual_seed(5)
                beside["states"] = terms["states"].modules(1, (widths[name], widths[other]))
            between[name]["states"] = STATES.source(peers[other], PAIRS[name])
            places = [ours for ours, _ in PAIRS[name]]
        players[name] = Player(models[name], terms, {}, beside, places)
    return Players(players, peers, between)


def with_smaller(model, learn=None, states=False):
    return mutual({"left": model, "right": smaller()}, learn or from_other(), states)


def trained_together(tiny_model, folder, checkpoints=None, player=with_smaller, **changes):
    """Return the players' weights and curve; the tiny model is the first."""
    made = []

    def remembered(model):
        made.append(player(model))
        return made[0]

    settings = {"questions": QUESTIONS, **changes}
    _, curve = trained(tiny_model, folder, checkpoints, player=remembered, **settings)
    return made[0], curve


def main(tiny_model: Path, out: Path, stages: list[str]) -> None:
    for stage in stages:
        _, curve = trained_together(tiny_model, out / stage, **SHARED, zero_stage=int(stage))
        if join_ranks().is_first:
            (out / stage / "curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    leave_ranks()
