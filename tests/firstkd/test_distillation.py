import pytest
import torch.nn.functional as F

from firstkd.capture import capture, finish
from firstkd.distillation import DistillationLoss
from firstkd.distributed import Ranks
from firstkd.knowledge import KnowledgeStore
from firstkd.models import load_model
from firstkd.packing import pack
from firstkd.prompts import Question
from firstkd.recalibration import Identity, Temperature
from firstkd.scoring import ResponseScorer, score_questions
from firstkd.settings import Arm, ExtractSettings
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


def loss_of(model, stores, temperature=1.0, **weights):
    loss = DistillationLoss(
        arm=Arm(recalibration="temperature", **weights),
        choice_knowledge=stores["choice"],
        token_knowledge=stores["token"],
        choice_recalibration=Temperature(temperature),
        token_recalibration=Identity(),
    )
    return loss(ResponseScorer(model), pack(QUESTIONS, [1, 0]))


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


def test_every_parameter_of_the_student_learns(student, stores):
    loss_of(student, stores, choices=1.0, tokens=1.0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
