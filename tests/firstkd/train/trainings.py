"""Trainings on a tiny model, in this process or as what torchrun starts.

Run as  torchrun --nproc-per-node 2 -m tests.firstkd.train.trainings MODEL OUT NAME…

which makes all the named trainings and writes the curve and weights of each to OUT.
"""

import json
import sys
from pathlib import Path

from firstkd.data.prompts import Question
from firstkd.reproducibility import deterministic
from firstkd.terms.gold import Gold
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.engine import load_to_train
from firstkd.train.loop import train
from firstkd.train.plan import training_plan
from firstkd.train.player import Player
from firstkd.train.settings import MachineSettings, TrainingSettings

SETTINGS = TrainingSettings(
    epochs=4,
    learning_rate=1e-2,
    micro_batch_size=8,
    micro_batch_tokens=1000,
    micro_batches_per_step=1,
    warmup_ratio=0.1,
    weight_decay=0.01,
    gradient_clipping=1.0,
    precision="fp32",
)
MACHINE = MachineSettings(
    processes=1,
    zero_stage=1,
    cpu_offload=False,
    gradient_checkpointing=False,
    checkpoint_steps=None,
)
GOLD = {"gold": Gold(kind="gold")}
# what follows is decided by the prompt's last token; some prompts are longer
QUESTIONS = [
    Question(str(i), [4] * (i % 3) + [i % 7, 10 + i % 5], [[50 + i % 5]], 0) for i in range(40)
]

# 20 steps of two micro-batches each
SHARED = {"epochs": 4, "micro_batch_size": 4, "micro_batches_per_step": 2, "learning_rate": 1e-3}
TRAININGS = {
    "zero_0": {"zero_stage": 0},
    "zero_1": {"zero_stage": 1},
    "zero_2": {"zero_stage": 2},
    "zero_3": {"zero_stage": 3},
    "zero_2_offload": {"zero_stage": 2, "cpu_offload": True},
    "zero_3_offload": {"zero_stage": 3, "cpu_offload": True},
    "zero_1_recomputing": {"zero_stage": 1, "gradient_checkpointing": True},
    "zero_3_recomputing": {"zero_stage": 3, "gradient_checkpointing": True},
    "bf16_zero_0": {"zero_stage": 0, "precision": "bf16"},
    "bf16_zero_2": {"zero_stage": 2, "precision": "bf16"},
    "bf16_zero_3": {"zero_stage": 3, "precision": "bf16"},
}


def changed(**changes):
    """Return the settings of training and of the machine, each with its own changes."""
    of_machine = {key: changes.pop(key) for key in MachineSettings.model_fields if key in changes}
    return SETTINGS.model_copy(update=changes), MACHINE.model_copy(update=of_machine)


def trained(
    tiny_model,
    folder,
    checkpoints=None,
    questions=QUESTIONS,
    plan=None,
    learn=GOLD,
    player=None,
    begin=None,
    own_text=None,
    rounds=None,
    **changes,
):
    """Train the tiny model under changed settings of either kind; return it and its curve.

    `player`, of a model, makes another one than that which learns from gold alone; `begin` may
    change what is trained, `own_text` makes what the model writes itself, and `rounds` asks
    calibration questions.
    """
    deterministic(seed=1, threads=1)
    settings, machine = changed(**changes)
    model = load_to_train(tiny_model, settings, machine, join_ranks())
    plan = plan or training_plan(questions, settings, seed=1)
    live = folder / "stage/curve.jsonl"
    player = player(model) if player else Player(model, learn, {})
    if begin:
        begin(player.scorer)
    writes = own_text(model) if own_text else None
    between = checkpoints, writes, rounds
    return model, train(player, questions, plan, settings, machine, live, *between)


def main(tiny_model: Path, out: Path, names: list[str]) -> None:
    for name in names:
        model, curve = trained(tiny_model, out / name, **SHARED, **TRAININGS[name])
        if join_ranks().is_first:
            (out / name / "curve.json").write_text(json.dumps(curve))
            model.save_pretrained(out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    leave_ranks()
