"""Terms in a player, on a tiny teacher and student; test_kinds.py has the dense references."""

import pytest
import torch
from pydantic import ValidationError

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.models.folders import load_model
from firstkd.models.head import HeadScores
from firstkd.models.scoring import ResponseScorer
from firstkd.models.settings import ModelSettings
from firstkd.models.view import View
from firstkd.recalibration.none import Identity
from firstkd.recalibration.temperature import Temperature
from firstkd.signals.target import Stored
from firstkd.terms.base import Ramp
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.divergences import with_gold
from firstkd.terms.gold import Gold
from firstkd.terms.gold_choice import GoldChoice
from firstkd.terms.sparse_kl import SparseKl
from firstkd.train.player import Player
from tests.firstkd.signals.stores import CHOICES, TOKENS, capture_into
from tests.tiny import write_tiny_model

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4, 9], [[21, 22, 2]], 0),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
]
UNKNOWN = Question("unknown", [5, 6], [[7], [8]], None)
LEARN = {
    "gold": Gold(kind="gold"),
    "right": GoldChoice(kind="gold_choice"),
    "choices": ChoiceKl(**{"kind": "choice_kl", "from": "choices"}),
    "tokens": SparseKl(**{"kind": "sparse_kl", "from": "tokens"}),
}


@pytest.fixture
def teacher(tiny_model):
    return load_model(tiny_model, "fp32").eval()


@pytest.fixture
def student(tmp_path):
    write_tiny_model(tmp_path / "student", layers=1)
    return load_model(tmp_path / "student", "fp32")


@pytest.fixture
def sources(teacher, tmp_path):
    """What the terms of LEARN are to match: the teacher as it is."""
    return {
        signal.kind: Stored(
            signal,
            capture_into(tmp_path / signal.kind, signal, teacher, QUESTIONS),
            Identity(),
            torch.arange(len(QUESTIONS)),
        )
        for signal in (CHOICES, TOKENS)
    }


def passed(model, sources, index=(2, 0, 1), learn=LEARN):
    player, batch = Player(model, learn, sources), pack(QUESTIONS, index)
    return player(batch, player.targets(batch))


def per_unit(found):
    return {name: each.total.item() / max(1, each.units) for name, each in found.items()}


def test_the_teacher_has_nothing_to_learn_from_itself(teacher, sources):
    found = passed(teacher, sources)
    losses = per_unit(found)
    assert losses["choices"] == pytest.approx(0, abs=1e-5)
    assert losses["tokens"] == pytest.approx(0, abs=1e-3)  # float16
    for name in ("choices", "tokens"):
        assert found[name].measures["agreement"] == found[name].units


@pytest.mark.parametrize("index", [[0], [1], [2], [1, 0], [0, 1, 2], [2, 1, 0]])
def test_the_units_of_a_pass_are_what_the_data_say(student, sources, index):
    found = passed(student, sources, index)
    counted = {name: sum(term.count(QUESTIONS[i]) for i in index) for name, term in LEARN.items()}
    assert {name: each.units for name, each in found.items()} == counted
    choices = sum(QUESTIONS[i].id != "open" for i in index)
    tokens = sum({"a": 2, "open": 3, "b": 4}[QUESTIONS[i].id] for i in index)
    assert counted == {"gold": tokens, "tokens": tokens, "right": choices, "choices": choices}


def test_a_question_without_a_known_answer_counts_for_choices_alone():
    assert {name: term.count(UNKNOWN) for name, term in LEARN.items()} == {
        "gold": 0,
        "right": 0,
        "choices": 1,
        "tokens": 0,
    }


def test_sums_of_parts_add_up_to_the_whole(student, sources):
    whole = passed(student, sources)
    parts = [passed(student, sources, [i]) for i in range(3)]
    for name, found in whole.items():
        total = sum(part[name].total.item() for part in parts)
        assert found.total.item() == pytest.approx(total, rel=1e-4, abs=1e-5)
        for measure, value in found.measures.items():
            summed = sum(float(part[name].measures[measure]) for part in parts)
            assert float(value) == pytest.approx(summed, rel=1e-5)


def test_recalibration_changes_what_is_to_be_matched(teacher, student, sources):
    choices = sources["choices"]
    tempered = Stored(choices.signal, choices.store, Temperature(2.0), choices.positions_Q)
    only = {"choices": LEARN["choices"]}
    found = passed(student, {"choices": tempered}, learn=only)["choices"]
    batch = pack(QUESTIONS, [2, 0])
    expected = 0.0
    views = [View(ResponseScorer(model), batch).choice_scores_BC for model in (teacher, student)]
    for theirs, ours in zip(*views, strict=True):
        wanted = (theirs[theirs.isfinite()] / 2).softmax(-1)
        ours = ours[ours.isfinite()].log_softmax(-1)
        expected += float((wanted * (wanted.log() - ours)).sum())
    assert found.total.item() == pytest.approx(expected, abs=1e-5)


def test_gold_moves_the_target_only_where_the_answer_is_known():
    target, gold = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]), torch.tensor([2, -1])
    expected = torch.tensor([[0.375, 0.225, 0.4], [0.6, 0.4, 0.0]])
    torch.testing.assert_close(with_gold(target, gold, 0.25), expected)
    torch.testing.assert_close(with_gold(target, gold, 1.0)[0], torch.tensor([0.0, 0.0, 1.0]))


def test_records_are_found_by_example_whatever_the_stores_order(student, sources):
    """Training questions in another order than those that were captured."""
    moved = [QUESTIONS[i] for i in (1, 2, 0)]
    there = torch.tensor([1, 2, 0])
    again = {
        name: Stored(each.signal, each.store, each.recalibration, there)
        for name, each in sources.items()
    }
    player = Player(student, LEARN, again)
    batch = pack(moved, [0, 1, 2])
    assert per_unit(player(batch, player.targets(batch))) == pytest.approx(
        per_unit(passed(student, sources)), rel=1e-4
    )


def test_a_batch_of_open_text_alone_gives_the_choices_no_loss(student, sources):
    found = passed(student, sources, [1], {name: LEARN[name] for name in ("choices", "right")})
    for each in found.values():
        each.total.backward(retain_graph=True)
        assert each.total == 0 and each.units == 0 and each.measures["agreement"] == 0


def test_every_parameter_of_the_student_learns(student, sources):
    for each in passed(student, sources).values():
        each.total.backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
        student.zero_grad()


def test_all_terms_share_one_pass_of_body_and_head(student, sources):
    player, seen = Player(student, LEARN, sources), []
    for name in ("backbone", "head"):
        module = getattr(player.scorer, name)
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    batch = pack(QUESTIONS, [0, 1])
    player(batch, player.targets(batch))
    assert seen == ["backbone", "head"]


def test_two_terms_on_tokens_are_scored_each_at_its_own_ids(student, sources, teacher):
    few = TOKENS.model_copy(update={"select": TOKENS.select.model_copy(update={"k": 2})})
    folder = sources["tokens"].store.folder.with_name("few")
    store = capture_into(folder, few, teacher, QUESTIONS)
    both = {**sources, "few": Stored(few, store, Identity(), torch.arange(3))}
    learn = {**LEARN, "few": SparseKl(**{"kind": "sparse_kl", "from": "few"})}
    found = per_unit(passed(student, both, learn=learn))
    for name in learn:
        alone = per_unit(passed(student, both, learn={name: learn[name]}))
        assert found[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6)
    assert found["few"] != pytest.approx(found["tokens"], rel=1e-3)


def test_nothing_is_scored_that_nobody_asks_for(student):
    view = View(ResponseScorer(student), pack(QUESTIONS, [1]))
    found = view.tokens("")
    assert isinstance(found, HeadScores) and found.top_logprobs_RK.numel() == 0


def test_a_weight_is_a_number_or_changes_linearly():
    assert Gold(kind="gold").weight_at(0.7) == 1.0
    falling = Gold(kind="gold", weight=Ramp(**{"from": 0.5, "to": 0.1}))
    assert [falling.weight_at(p) for p in (0, 0.25, 1)] == pytest.approx([0.5, 0.4, 0.1])
    for wrong in (-1, {"from": -1, "to": 0}, {"from": 1}):
        with pytest.raises(ValidationError):
            Gold(kind="gold", weight=wrong)


def test_a_term_learns_only_from_decisions_of_its_own_kind():
    assert LEARN["choices"].misfit(CHOICES) is None and LEARN["tokens"].misfit(TOKENS) is None
    assert LEARN["choices"].misfit(TOKENS) == (
        "it compares choices, but signals.choices holds tokens"
    )
    assert "compares tokens, but signals.tokens holds choices" in LEARN["tokens"].misfit(CHOICES)


def test_tempering_the_vocabulary_needs_the_tails_nodes():
    whole = LEARN["tokens"].model_copy(update={"recalibrate": "vocabulary_temperature"})
    assert "set signals.tokens.tail_nodes to 8" in whole.misfit(TOKENS)
    assert whole.misfit(TOKENS.model_copy(update={"tail_nodes": 8})) is None


@pytest.mark.parametrize("name", ["loss", "step", "step_tokens", "learning_rate"])
def test_a_term_is_not_named_like_a_column_of_the_curve(name):
    init = {"kind": "copy", "of": "base"}
    with pytest.raises(ValidationError, match=f"{name} is already a column .* rename the term"):
        ModelSettings(init=init, train="t", learn={name: {"kind": "gold"}})
