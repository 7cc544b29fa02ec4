import pytest
import torch
import torch.nn.functional as F
from firstkd.terms.distillation import DistillationLoss, Lessons
from firstkd.terms.settings import Arm

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.models.folders import load_model
from firstkd.models.scoring import ResponseScorer, score_questions
from firstkd.recalibration.kinds import Identity, Temperature
from firstkd.signals.capture import capture, finish
from firstkd.signals.knowledge import KnowledgeStore
from firstkd.signals.settings import ExtractSettings
from firstkd.train.distributed import Ranks
from tests.tiny import write_tiny_model

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
]


@pytest.fixture
def teacher(tiny_model):
    return load_model(tiny_model, "fp32").eval()


@pytest.fixture
def student(tmp_path):
    write_tiny_model(tmp_path / "student", layers=1)
    return load_model(tmp_path / "student", "fp32")


@pytest.fixture
def stores(teacher, tmp_path):
    settings = ExtractSettings(
        top_k=5, tail_nodes=0, micro_batch_size=2, shard_examples=8, min_top_k_mass=0
    )
    found = capture(teacher, QUESTIONS, settings, 400, tmp_path / "knowledge", Ranks())
    finish(tmp_path / "knowledge", found, identity={})
    return {k: KnowledgeStore(tmp_path / "knowledge" / k) for k in ("choice", "token")}


def measured(model, stores, temperature=1.0, progress=0.0, **weights):
    arm = Arm(recalibration="temperature", **weights)
    loss = DistillationLoss(
        arm=arm,
        choices=Lessons(stores["choice"], Temperature(temperature)) if arm.choices else None,
        tokens=Lessons(stores["token"], Identity()) if arm.tokens else None,
    )
    return loss(ResponseScorer(model), pack(QUESTIONS, [1, 0]), progress)


def loss_of(*arguments, **weights):
    return measured(*arguments, **weights)[0]


def test_the_teacher_has_nothing_to_learn_from_itself(teacher, stores):
    assert loss_of(teacher, stores, choices=1.0).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(teacher, stores, tokens=1.0).item() == pytest.approx(0, abs=1e-3)  # float16


def test_choices_are_matched_at_the_teachers_temperature(teacher, student, stores):
    taught = (score_questions(teacher, QUESTIONS, 2) / 2.0).softmax(-1)
    scores = score_questions(student, QUESTIONS, 2)
    expected = 0.0
    for row, choices in ((0, 3), (1, 2)):
        log_student = scores[row, :choices].log_softmax(-1)
        expected += F.kl_div(log_student, taught[row, :choices], reduction="sum") / 2
    found = loss_of(student, stores, temperature=2.0, choices=1.0)
    assert found.item() == pytest.approx(float(expected), abs=1e-5)


def test_terms_add_up_with_their_weights(student, stores):
    alone = [
        loss_of(student, stores, **{term: 1.0}).item()
        for term in ("choices", "tokens", "gold_tokens")
    ]
    together = loss_of(student, stores, choices=1.0, tokens=0.5, gold_tokens=2.0).item()
    assert together == pytest.approx(alone[0] + 0.5 * alone[1] + 2 * alone[2], rel=1e-5)


def test_the_weight_of_tokens_beside_choices_falls_to_nothing(student, stores):
    choices, tokens = (loss_of(student, stores, **{t: 1.0}).item() for t in ("choices", "tokens"))
    for progress in (0.25, 1.0):
        found = loss_of(student, stores, progress=progress, choices=1.0, tokens=1.0).item()
        assert found == pytest.approx(choices + (1 - progress) * tokens, rel=1e-5)
        alone = loss_of(student, stores, progress=progress, tokens=1.0).item()
        assert alone == pytest.approx(tokens, rel=1e-5)


def test_every_parameter_of_the_student_learns(student, stores):
    loss_of(student, stores, choices=1.0, tokens=1.0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_the_measures_are_those_of_the_dense_distributions(teacher, student, stores):
    _, found = measured(student, stores, choices=1.0, tokens=1.0, gold_tokens=1.0)
    agree, mass, gold = [], [], []
    for question in (QUESTIONS[1], QUESTIONS[0]):
        response = question.responses[question.gold]
        ids = torch.tensor([question.prompt + response])
        start = len(question.prompt) - 1
        ours, theirs = (
            model(ids, use_cache=False).logits[0, start:-1].softmax(-1)
            for model in (student, teacher)
        )
        agree += (ours.argmax(-1) == theirs.argmax(-1)).tolist()
        mass += ours.gather(-1, theirs.topk(5).indices).sum(-1).tolist()
        gold += ours[range(len(response)), response].log().tolist()
    assert found["token_agreement"].item() == pytest.approx(sum(agree) / len(agree))
    assert found["head_mass"].item() == pytest.approx(sum(mass) / len(mass), abs=1e-5)
    assert found["gold_cross_entropy"].item() == pytest.approx(-sum(gold) / len(gold), abs=1e-5)
    choices = [score_questions(model, QUESTIONS, 2).argmax(-1) for model in (student, teacher)]
    expected = (choices[0] == choices[1]).float().mean()
    assert found["choice_agreement"].item() == pytest.approx(float(expected))


def test_the_teacher_agrees_with_itself(teacher, stores):
    _, found = measured(teacher, stores, choices=1.0, tokens=1.0)
    assert found["choice_agreement"] == found["token_agreement"] == 1
    assert found["choice_kl"].item() == pytest.approx(0, abs=1e-5)


def test_a_batch_of_open_text_alone_gives_the_choices_no_loss(student, stores):
    loss = DistillationLoss(
        arm=Arm(recalibration="none", choices=1.0),
        choices=Lessons(stores["choice"], Identity()),
        tokens=None,
    )
    batch = pack([q.gold_only() for q in QUESTIONS], [0])
    value, found = loss(ResponseScorer(student), batch, 0.0)
    value.backward()
    assert value == 0 and not found


def test_a_hook_on_the_head_sees_every_use_of_it(student, stores):
    scorer, seen = ResponseScorer(student), []
    scorer.head.register_forward_hook(lambda *_: seen.append(True))
    scorer(pack(QUESTIONS, [0]), stores["token"].of_examples(torch.tensor([0])).top_ids)
    assert seen == [True]
