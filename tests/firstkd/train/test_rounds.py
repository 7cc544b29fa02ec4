"""Trainings that adapt to calibration questions."""

import os
import signal

import pytest
import torch

from firstkd.models.folders import load_model
from firstkd.models.scoring import score_questions
from firstkd.terms.adaptive_focal import AdaptiveFocal
from firstkd.terms.gammas import Gammas
from firstkd.train.player import Player
from firstkd.train.rounds import is_due
from tests.firstkd.train.adapting import CALIBRATION, ROUNDS, training
from tests.firstkd.train.mutual import QUESTIONS, with_smaller
from tests.firstkd.train.trainings import GOLD, trained


@pytest.mark.parametrize(
    ("steps", "rounds", "due"),
    [(10, 2, [0, 5]), (10, 3, [0, 4, 7]), (3, 9, [0, 1, 2]), (10, 1, [0])],
)
def test_rounds_are_evenly_spaced_and_the_first_is_before_the_first_step(steps, rounds, due):
    assert [step for step in range(steps) if is_due(step, steps, rounds)] == due


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_what_adapts_is_told_how_the_student_answers_at_that_step(
    tiny_model, tmp_path, zero_stage, monkeypatch
):
    told = []
    adapt = Gammas.adapt

    def noted(self, scores, right):
        told.append((scores, right.tolist()))
        adapt(self, scores, right)

    monkeypatch.setattr(Gammas, "adapt", noted)
    training(tiny_model, tmp_path, zero_stage=zero_stage)
    assert len(told) == 4 and told[0][1] == [question.gold for question in CALIBRATION]
    expected = score_questions(load_model(tiny_model, "fp32"), CALIBRATION, 8)
    torch.testing.assert_close(told[0][0].float(), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(told[-1][0].float(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0, "precision": "bf16"},
        {"zero_stage": 1, "gradient_checkpointing": True},
        {"zero_stage": 3},
    ],
)
@pytest.mark.parametrize("stop", [4, 7])
def test_stopped_it_goes_on_bit_for_bit(tiny_model, tmp_path, changes, stop):
    calls = []

    class Interrupted(AdaptiveFocal):
        def __call__(self, view, name, target):
            calls.append(name)
            if len(calls) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(view, name, target)

    expected, curve = training(tiny_model, tmp_path, **changes)
    with pytest.raises(SystemExit):
        training(tiny_model, tmp_path, tmp_path / "saved", Interrupted, **changes)
    found, resumed = training(tiny_model, tmp_path, tmp_path / "saved", **changes)
    assert resumed == curve
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    gammas = [point["focal_gamma"] for point in curve]
    assert len({*gammas}) > 4  # other questions are in other bins, whose γ changes as well
    shown = [point["tokens_probability"] for point in curve]
    # of 15 steps, a round begins before the first and so on; the first only measures
    starts = [step for step in range(15) if is_due(step, 15, 6)]
    changed = [step for step in range(1, 15) if shown[step] != shown[step - 1]]
    assert {*changed} <= {*starts[1:]} and shown[0] == 0.5


def test_a_term_counts_only_while_it_is_drawn(tiny_model, tmp_path):
    _, curve = training(tiny_model, tmp_path)
    drawn = set()
    for point in curve:
        rest = point["loss"] - point["focal"]
        (name,) = [n for n in ("choices", "tokens") if rest == pytest.approx(point[n], rel=1e-6)]
        drawn.add(name)
    assert drawn == {"choices", "tokens"}


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_asking_changes_nothing_for_what_does_not_adapt(tiny_model, tmp_path, zero_stage):
    """Neither random numbers, dropout nor shared out weights."""
    plain, curve = trained(tiny_model, tmp_path, zero_stage=zero_stage)

    def player(model):
        never = AdaptiveFocal(kind="adaptive_focal", rounds=7, weight=0.0)
        beside = {"never": never.modules(0, (0, 0))}
        return Player(model, {**GOLD, "never": never}, {}, beside)

    asked, again = trained(
        tiny_model, tmp_path, player=player, rounds=ROUNDS, zero_stage=zero_stage
    )
    assert [point["gold"] for point in again] == [point["gold"] for point in curve]
    for ours, theirs in zip(asked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_of_two_that_learn_together_adapts_to_its_own_answers(tiny_model, tmp_path):
    made = []

    def player(model):
        made.append(with_smaller(model))
        for each in made[0].players:
            term = AdaptiveFocal(kind="adaptive_focal", rounds=3)
            each.learn["right"] = term
            each._beside["right"] = term.modules(0, (0, 0))
        made[0].learn.update({f"{n}.right": p.learn["right"] for n, p in made[0]._players.items()})
        return made[0]

    trained(tiny_model, tmp_path, questions=QUESTIONS, player=player, rounds=ROUNDS)
    gammas = {name: found.adaptive.gammas for name, found in made[0].adaptive.items()}
    assert [*gammas] == ["left.learn.right", "right.learn.right"]
    assert gammas["left.learn.right"] != gammas["right.learn.right"]
