"""The benchmark of live teachers and stored states, on tiny models."""

import pytest

from benchmarks import live
from firstkd.models.folders import load_model
from tests.tiny import write_tiny_model


def test_what_a_live_teacher_and_stored_states_add_is_measured(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "STEPS", 1)
    write_tiny_model(tmp_path / "student", layers=1)
    teacher, student = (
        load_model(tiny_model, "fp32").eval(),
        load_model(tmp_path / "student", "fp32"),
    )
    found = live.measured(student, teacher, tmp_path)
    assert found["step_seconds"] > 0 and found["forward_seconds"] > 0
    assert found.keys() > {"live_vs_forward", "stored_states_vs_step"}


def test_its_questions_have_a_right_choice_each():
    questions = live.questions_of(400)
    assert len(questions) == live.QUESTIONS
    assert all(len(question.responses) == live.CHOICES for question in questions)
    assert {question.gold for question in questions} == {*range(live.CHOICES)}
    with pytest.raises(RuntimeError):
        live.questions_of(3)  # no tokens beside the special ones
