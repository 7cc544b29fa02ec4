"""Trainings at a temperature that is learned beside the student, saved and thrown away."""

import os
import signal

import pytest
import torch

from firstkd.signals.live import Watched
from firstkd.terms.curriculum_kl import CurriculumKl
from firstkd.train.player import Player
from tests.firstkd.train.mutual import CHOICES, QUESTIONS, smaller
from tests.firstkd.train.trainings import trained


def learning(kind=CurriculumKl):
    term = kind.model_validate(
        {"kind": "curriculum_kl", "from": "other", "recalibrate": "none", "rise": 0.5}
    )

    def player(model):
        source = CHOICES.source(Watched(smaller(), ()), ())
        beside = {"harder": term.modules(0, (0, 0))}
        return Player(model, {"harder": term}, {"harder": source}, beside)

    return {"questions": QUESTIONS, "player": player, "learning_rate": 1e-3, "epochs": 2}


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_temperature_moves_is_saved_and_goes_on_bit_for_bit(tiny_model, tmp_path, zero_stage):
    calls = []

    class Interrupted(CurriculumKl):
        def __call__(self, view, name, target):
            calls.append(view.progress)
            if len(calls) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(view, name, target)

    expected, curve = trained(tiny_model, tmp_path, **learning(), zero_stage=zero_stage)
    temperatures = [point["harder_temperature"] for point in curve]
    # it reaches nowhere in the first step, which therefore teaches it nothing
    assert temperatures[:2] == [3.0, 3.0]
    assert all(1 < temperature < 5 for temperature in temperatures)
    assert len(set(temperatures[1:])) == len(temperatures[1:])
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(SystemExit):
        trained(tiny_model, tmp_path, checkpoints, **learning(Interrupted), zero_stage=zero_stage)
    assert calls == pytest.approx([step / len(curve) for step in range(7)])
    found, resumed = trained(tiny_model, tmp_path, checkpoints, **learning(), zero_stage=zero_stage)
    assert resumed == curve
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
