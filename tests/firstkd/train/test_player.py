"""Models that learn from one another in one training."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from firstkd.data.packing import pack
from firstkd.terms.base import Ramp
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.train.player import Player
from tests.firstkd.test_kinds import float64_model
from tests.firstkd.train.mutual import (
    PAIRS,
    QUESTIONS,
    RIGHT,
    from_other,
    mutual,
    trained_together,
    with_smaller,
)
from tests.firstkd.train.trainings import SHARED, trained
from tests.tiny import REPOSITORY


def dense_scores(model, question):
    """Each choice by a plain forward pass of the whole text."""
    scores = []
    for response in question.responses:
        logits = model(torch.tensor([[*question.prompt, *response]])).logits[0]
        logprobs = logits[len(question.prompt) - 1 : -1].log_softmax(-1)
        scores.append(logprobs.gather(-1, torch.tensor(response)[:, None]).mean())
    return torch.stack(scores)


def dense_loss(model, other, questions):
    """Cross-entropy of the right choice, and KL from what the other model says, which is fixed."""
    total = 0
    for question in questions:
        found = dense_scores(model, question).log_softmax(-1)
        with torch.no_grad():
            wanted = dense_scores(other, question).softmax(-1)
        kl = torch.nn.functional.kl_div(found, wanted, reduction="sum")
        total = total + kl - found[question.gold]
    return total


def test_value_and_gradients_are_the_dense_ones():
    models = {"left": float64_model(80, seed=0), "right": float64_model(80, seed=1, layers=1)}
    players, questions = mutual(models, from_other()), QUESTIONS[:4]
    sums = players(batch := pack(questions, range(4)), players.targets(batch))
    assert {name: found.units for name, found in sums.items()} == dict.fromkeys(
        ("left.right", "left.other", "right.right", "right.other"), 4
    )
    sum(found.total for found in sums.values()).backward()
    gradients = [parameter.grad.clone() for parameter in players.parameters()]
    players.zero_grad()
    for name, other in (("left", "right"), ("right", "left")):
        expected = dense_loss(models[name], models[other], questions)
        found = sums[f"{name}.right"].total + sums[f"{name}.other"].total
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        expected.backward()
    for parameter, gradient in zip(players.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-9)


def test_hidden_states_of_the_other_are_those_of_its_own_pass():
    models = {
        "left": float64_model(80, seed=0, layers=2),
        "right": float64_model(80, seed=1, layers=1, width=24),
    }
    players = mutual(models, from_other(), states=True).double()
    batch = pack(QUESTIONS, range(4))
    found = players(batch, players.targets(batch))["left.states"].total
    ((ours, theirs),) = PAIRS["left"]
    left, right = (
        player.scorer.states(batch, player.places).at_places[place]
        for player, place in zip(players.players, (ours, theirs), strict=True)
    )
    projector = players.players[0].beside[0][0]
    cosine = torch.nn.functional.cosine_similarity(projector(left), right, dim=-1)
    torch.testing.assert_close(found, (1 - cosine).sum(), rtol=0, atol=1e-9)
    found.backward()
    assert all(p.grad is None for p in models["right"].parameters())


def test_a_model_alone_learns_as_without_the_other_if_that_has_no_weight(tiny_model, tmp_path):
    silent = ChoiceKl.model_validate({**from_other().model_dump(by_alias=True), "weight": 0.0})
    changes = {"gradient_clipping": 1e9, "epochs": 1}  # which is of both models' gradient
    together, curve = trained_together(
        tiny_model, tmp_path, player=lambda model: with_smaller(model, silent), **changes
    )
    alone, expected = trained(
        tiny_model,
        tmp_path,
        questions=QUESTIONS,
        player=lambda model: Player(model, {"right": RIGHT}, {}),
        **changes,
    )
    mine = together.curve_of("left", curve)
    assert [point["loss"] for point in mine] == [point["loss"] for point in expected]
    found = together.players[0].scorer.state_dict()
    for name, weights in Player(alone, {}, {}).scorer.state_dict().items():
        assert torch.equal(found[name], weights)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_both_learn_and_come_to_agree(tiny_model, tmp_path, zero_stage):
    precision = "bf16" if zero_stage == 0 else "fp32"
    _, curve = trained_together(tiny_model, tmp_path, zero_stage=zero_stage, precision=precision)
    for name in ("left", "right"):
        right = [point[f"{name}.right"] for point in curve]
        assert sum(right[-4:]) < 0.9 * sum(right[:4])
        assert all(point[f"{name}.other"] >= 0 for point in curve)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_stopped_in_a_step_both_go_on_bit_for_bit(tiny_model, tmp_path, zero_stage):
    calls = []

    class Interrupted(ChoiceKl):
        def __call__(self, view, name, target):
            calls.append(name)
            if len(calls) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(view, name, target)

    def training(checkpoints=None, learn=None):
        def player(model):
            return with_smaller(model, learn, states=True)

        return trained_together(
            tiny_model, tmp_path, checkpoints, player, zero_stage=zero_stage, epochs=2
        )

    undisturbed, curve = training()
    with pytest.raises(SystemExit):
        training(tmp_path / "checkpoints", from_other(Interrupted))
    assert (tmp_path / "checkpoints/step-00000004").is_dir()  # two calls a step
    resumed, again = training(tmp_path / "checkpoints")
    assert curve == again
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_micro_batches_are_one_large_batch(tiny_model, tmp_path):
    whole, parts = [[*range(8)]], [[0, 1, 2], [3], [4, 5, 6, 7]]
    (large,), (small,) = (
        trained_together(tiny_model, tmp_path, plan=plan, micro_batches_per_step=len(plan))[1]
        for plan in (whole, parts)
    )
    assert small == {key: pytest.approx(value, rel=1e-5) for key, value in large.items()}


def test_layers_that_are_computed_again_change_nothing(tiny_model, tmp_path):
    (kept,), (again,) = (
        trained_together(
            tiny_model, tmp_path, plan=[[*range(8)]], gradient_checkpointing=recompute
        )[1]
        for recompute in (False, True)
    )
    assert again == {key: pytest.approx(value, rel=1e-5) for key, value in kept.items()}


def test_the_curve_of_one_is_its_own(tiny_model, tmp_path):
    falling = Ramp(**{"from": 0.5, "to": 0})
    learn = ChoiceKl.model_validate(
        {"kind": "choice_kl", "from": "other", "recalibrate": "none", "weight": falling}
    )
    players, curve = trained_together(
        tiny_model, tmp_path, player=lambda model: with_smaller(model, learn), epochs=1
    )
    left, right = (players.curve_of(name, curve) for name in ("left", "right"))
    for number, (whole, one, other) in enumerate(zip(curve, left, right, strict=True)):
        weight = 0.5 * (1 - number / len(curve))
        assert one["loss"] == pytest.approx(one["right"] + weight * one["other"])
        assert one["loss"] + other["loss"] == pytest.approx(whole["loss"])
        assert {"step", "learning_rate", "gradient_norm", "other_agreement"} <= one.keys()
        assert not [key for key in one if "." in key]


@pytest.mark.distributed
@pytest.mark.integration
def test_two_processes_learn_what_one_does(tiny_model, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.firstkd.train.mutual"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, tiny_model, tmp_path, *"0123"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, alone = trained_together(tiny_model, tmp_path / "one", **SHARED, zero_stage=1)
    for stage in "0123":
        shared = json.loads((tmp_path / stage / "curve.json").read_text())
        for key in ("loss", "left.other", "right.right", "gradient_norm"):
            expected = pytest.approx([point[key] for point in alone], rel=1e-3)
            assert [point[key] for point in shared] == expected
