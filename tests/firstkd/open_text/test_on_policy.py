"""A student that learns on what it writes itself, against plain forward passes."""

import os
import signal

import pytest
import torch

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.models.folders import load_model
from firstkd.open_text.on_policy import OwnText
from firstkd.open_text.settings import OnPolicy
from firstkd.signals.live import LiveDecisions, Watched
from firstkd.signals.tokens import Tokens
from firstkd.terms.sparse_kl import SparseKl
from firstkd.train.player import Player
from tests.firstkd.test_kinds import World, dense_sparse_kl, float64_model
from tests.firstkd.train.trainings import trained

SIZE = 60
STOP = frozenset([2])
OPEN = [Question(str(i), [4 + i % 3, 10 + i], [[50 + i, 2]], 0) for i in range(24)]
UNANSWERED = Question("unanswered", [7, 8, 9], [], None)
WITH_CHOICES = Question("choices", [7, 9], [[20], [21, 22]], 1)
TOKENS = Tokens.model_validate(
    {"kind": "tokens", "of": "teacher", "select": {"kind": "top_k", "k": 8}, "live": True}
)
JSD = {
    "kind": "sparse_kl",
    "from": "tokens",
    "recalibrate": "none",
    "divergence": {"kind": "jsd", "beta": 0.3},
}


def own_text(model, questions=OPEN, **changes):
    settings = OnPolicy.model_validate({"share": 1.0, "max_new_tokens": 6, **changes})
    prompts = {i: q.prompt for i, q in enumerate(questions) if len(q.responses) < 2}
    return OwnText(settings, model, prompts, STOP, 5, 32, 8192)


def numbered(questions):
    return dict(enumerate(questions))


def test_what_is_written_is_what_the_student_finds_probable():
    model = float64_model(SIZE, seed=0)
    written = own_text(model, temperature=1e-6).in_batch(numbered(OPEN), 0)
    for i, question in written.items():
        [response], ids = question.responses, [*OPEN[i].prompt]
        assert question.gold == 0 and 1 <= len(response) <= 6
        for token in response:
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax()
            assert 2 not in ids
            ids.append(token)


def test_the_same_number_is_the_same_text_in_whatever_batch():
    writes = own_text(float64_model(SIZE, seed=0))
    whole = writes.in_batch(numbered(OPEN), 3)
    assert whole == writes.in_batch(numbered(OPEN), 3) != writes.in_batch(numbered(OPEN), 4)
    assert whole == writes.in_batch(dict([*numbered(OPEN).items()][::-1]), 3)
    assert whole[7] == writes.in_batch({7: OPEN[7]}, 3)[7]


def test_it_writes_in_a_share_of_the_micro_batches_and_where_nobody_else_has():
    questions = [OPEN[0], UNANSWERED, WITH_CHOICES]
    writes = own_text(float64_model(SIZE, seed=0), questions, share=0.3)
    own = [number for number in range(2000) if writes.writes_in(number)]
    assert len(own) == pytest.approx(600, abs=60)
    others = [number for number in range(9) if number not in own]
    for number in (own[0], own[1], others[0], others[1]):
        found = writes.in_batch(numbered(questions), number)
        assert (found[0] == OPEN[0]) is (number in others)
        assert found[1].gold == 0 and found[1].responses[0]
        assert found[2] is WITH_CHOICES


def test_micro_batches_have_room_for_the_longest_answer():
    questions = [OPEN[0], UNANSWERED, WITH_CHOICES]
    longest = own_text(None, questions).at_their_longest(questions)
    assert [len(q.responses[0]) for q in longest] == [6, 6, 1]
    assert longest[2] is WITH_CHOICES


def test_value_and_gradient_are_the_dense_ones_of_what_it_wrote():
    student, teacher = float64_model(SIZE, seed=0), float64_model(SIZE, seed=1)
    questions = [*own_text(student).in_batch(numbered(OPEN[:5]), 0).values()]
    assert [q.responses for q in questions] != [q.responses for q in OPEN[:5]]
    term = SparseKl.model_validate(JSD)
    player = Player(student, {"t": term}, {"t": LiveDecisions(TOKENS, Watched(teacher, ()))})
    target = player.targets(batch := pack(questions, range(5)))["t"]
    target = target._replace(
        probabilities_RK=target.probabilities_RK.double(), tail_R=target.tail_R.double()
    )
    found = player(batch, {"t": target})["t"]
    found.total.backward()
    gradients = [parameter.grad.clone() for parameter in student.parameters()]
    player.zero_grad()
    expected = dense_sparse_kl(World(questions, student, teacher, None, SIZE, {}, {}), term, target)
    expected.backward()
    torch.testing.assert_close(found.total, expected, rtol=0, atol=1e-9)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-9)


def training(tiny_model, folder, checkpoints=None, kind=SparseKl, **changes):
    teacher = load_model(tiny_model, "fp32")
    teacher.get_input_embeddings().weight.data.mul_(5)  # the head's, too
    settings = {"epochs": 3, "learning_rate": 1e-3, **changes}

    def player(model):
        source = LiveDecisions(TOKENS, Watched(teacher, ()))
        return Player(model, {"tokens": kind.model_validate(JSD)}, {"tokens": source})

    def writes(model):
        return own_text(model, share=0.5)

    return trained(
        tiny_model, folder, checkpoints, OPEN, player=player, own_text=writes, **settings
    )


def test_the_student_comes_to_agree_with_the_teacher_on_its_own_text(tiny_model, tmp_path):
    _, curve = training(tiny_model, tmp_path, epochs=8, learning_rate=1e-2)
    losses = [point["tokens"] for point in curve]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0, "precision": "bf16"},
        {"zero_stage": 1, "gradient_checkpointing": True},
        {"zero_stage": 2, "micro_batches_per_step": 2},
        {"zero_stage": 3, "micro_batches_per_step": 2},
    ],
)
def test_stopped_it_goes_on_bit_for_bit(tiny_model, tmp_path, changes):
    calls = []

    class Interrupted(SparseKl):
        def __call__(self, view, name, target):
            calls.append(name)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(view, name, target)

    undisturbed, curve = training(tiny_model, tmp_path, **changes)
    with pytest.raises(SystemExit):
        training(tiny_model, tmp_path, tmp_path / "saved", Interrupted, **changes)
    resumed, again = training(tiny_model, tmp_path, tmp_path / "saved", **changes)
    assert curve == again
    for a, b in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_micro_batches_count_what_was_written_in_all_of_them(tiny_model, tmp_path):
    _, (point,) = training(
        tiny_model, tmp_path, plan=[[0, 1], [2, 3, 4], [5]], micro_batches_per_step=3
    )
    model, teacher = load_model(tiny_model, "fp32"), load_model(tiny_model, "fp32")
    teacher.get_input_embeddings().weight.data.mul_(5)
    writes, source = own_text(model, share=0.5), LiveDecisions(TOKENS, Watched(teacher, ()))
    player = Player(model, {"t": SparseKl.model_validate(JSD)}, {"t": source})
    total, units = 0.0, 0
    for number, index in enumerate([[0, 1], [2, 3, 4], [5]]):
        questions = writes.in_batch({i: OPEN[i] for i in index}, number)
        batch = pack(questions, index)
        found = player(batch, player.targets(batch))["t"]
        total, units = total + found.total.item(), units + found.units
    assert point["tokens"] == pytest.approx(total / units, rel=1e-5)
