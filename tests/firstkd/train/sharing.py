"""Trainings of the tiny model by terms of every other kind, all in one objective; on-policy; and
adapting to calibration questions.

Run as  torchrun --nproc-per-node 2 -m tests.firstkd.train.sharing MODEL OUT

which trains under each ZeRO stage that makes sense and writes the curves to OUT/NAME.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from firstkd.models.folders import load_model
from firstkd.signals.target import StoredStates
from firstkd.terms.hidden import Hidden
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.player import Player
from tests.firstkd.open_text.test_on_policy import training
from tests.firstkd.signals.stores import STATES, capture_into
from tests.firstkd.test_kinds import TERMS, make, make_world, source_of
from tests.firstkd.train import adapting
from tests.firstkd.train.trainings import trained

MADE = {
    "flow": "flow, length",
    "relation": "relation, similarity",
    "adversarial": "adversarial, wide",
}
"""What is not made as its name says: widths differ, and two questions have one distance alone."""
NAMES = (
    *("relation", "flow", "attention", "adversarial"),
    *("alm", "uld", "dirichlet", "curriculum_kl"),
)
SHARED = {"micro_batch_size": 2, "micro_batches_per_step": 2, "learning_rate": 1e-3}
STAGES = {"all": "0123", "on_policy": "0123", "adapting": "13"}


def player_of(tiny_model, folder):
    """Return the questions, and what makes a player of all terms; stores lie in the folder."""
    folder.mkdir(parents=True)
    world = make_world(tiny_model, folder)
    models = {name: getattr(world, name).float() for name in ("teacher", "wide")}
    store = capture_into(folder / "states", STATES, world.teacher, world.questions)
    world = replace(world, student=load_model(tiny_model, "fp32"), **models)

    def player(model):
        learn = {name: make(TERMS, MADE.get(name, name)) for name in NAMES}
        sources, places, beside = {}, {}, {}
        for name, term in learn.items():
            sources[name], ours, modules = source_of(world, term)
            beside[name] = modules.float()
            places |= dict.fromkeys(ours)
        learn["states"] = Hidden.model_validate({"kind": "hidden", "from": "states"})
        sources["states"] = states = StoredStates(store, torch.arange(len(world.questions)), 2)
        beside["states"] = learn["states"].modules(1, (32, states.width))
        return Player(model, learn, sources, beside, [*{**places, states.place: None}])

    return world.questions, player


def of_all_terms(tiny_model, out, stage):
    questions, player = player_of(tiny_model, out / f"world-{join_ranks().rank}")
    return trained(
        tiny_model, out, questions=questions, player=player, epochs=12, zero_stage=stage, **SHARED
    )


def on_policy(tiny_model, out, stage):
    return training(tiny_model, out, epochs=4, zero_stage=stage, **SHARED)


def adapted(tiny_model, out, stage):
    return adapting.training(tiny_model, out, zero_stage=stage, **SHARED)


TRAININGS = {"all": of_all_terms, "on_policy": on_policy, "adapting": adapted}


def main(tiny_model: Path, out: Path) -> None:
    for name, stages in STAGES.items():
        for stage in stages:
            _, curve = TRAININGS[name](tiny_model, out / f"{name}-{stage}", int(stage))
            if join_ranks().is_first:
                (out / f"{name}-{stage}/curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    leave_ranks()
