import dataclasses

import pytest
import torch

from firstkd.answering import Answerer
from firstkd.errors import DataValidationError
from firstkd.files import write_json
from firstkd.models.scoring import score_questions


@pytest.fixture
def answerer(tiny_model, tmp_path):
    prompt = {"format": "cloze", "max_length": 64}
    write_json(tmp_path / "calibration.json", {"temperature": 2.0, "prompt": prompt})
    return Answerer.load(tiny_model, tmp_path / "calibration.json")


CHOICES = [["in a den", "in a hive", "in the sea"], ["in a cave", "in a nest"]]
QUESTIONS = ["Where does the red fox live?", "Where does the old bird live?"]


def test_confidence_is_the_best_choices_calibrated_probability(answerer):
    from firstkd.data.examples import Example
    from firstkd.data.prompts import encode

    answers = answerer.answer(QUESTIONS, CHOICES)
    examples = [
        Example("0", q, "", tuple(c), None, "") for q, c in zip(QUESTIONS, CHOICES, strict=True)
    ]
    encoded = encode(examples, answerer.tokenizer, answerer.prompt)
    expected = (score_questions(answerer.model, encoded, 8) / 2.0).softmax(-1)
    for answer, row, choices in zip(answers, expected, CHOICES, strict=True):
        assert answer.confidence == pytest.approx(float(row.max()))
        assert answer.answer == choices[int(row.argmax())]
        torch.testing.assert_close(torch.tensor(answer.probabilities), row[: len(choices)])


def test_what_is_too_uncertain_is_abstained_from(answerer):
    sure, unsure = sorted(answerer.answer(QUESTIONS, CHOICES), key=lambda each: -each.confidence)
    assert not sure.abstain and not unsure.abstain
    middle = (sure.confidence + unsure.confidence) / 2
    strict = dataclasses.replace(answerer, abstain_below=middle)
    abstained = {each.answer: each.abstain for each in strict.answer(QUESTIONS, CHOICES)}
    assert abstained == {sure.answer: False, unsure.answer: True}


def test_a_question_without_choices_has_those_that_all_questions_shared(answerer):
    shared = dataclasses.replace(answerer, common_choices=CHOICES[0])
    assert shared.answer(QUESTIONS, [None, CHOICES[1]]) == answerer.answer(QUESTIONS, CHOICES)
    with pytest.raises(DataValidationError, match=r"question 2 .*live.* names no choices"):
        answerer.answer(QUESTIONS, [CHOICES[0], None])


def test_a_single_choice_is_refused(answerer):
    with pytest.raises(DataValidationError, match=r"question 2 .* has 1 choices"):
        answerer.answer(QUESTIONS, [CHOICES[0], ["in a cave"]])
