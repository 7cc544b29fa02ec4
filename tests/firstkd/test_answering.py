import dataclasses
import json

import pytest
import torch

from firstkd.answering import Answerer
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.errors import DataValidationError
from firstkd.files import write_json
from firstkd.models.scoring import score_questions
from firstkd.serving.promise import Promise, Threshold


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
    strict = dataclasses.replace(answerer, threshold=Threshold(middle))
    abstained = {each.answer: each.abstain for each in strict.answer(QUESTIONS, CHOICES)}
    assert abstained == {sure.answer: False, unsure.answer: True}


@pytest.mark.parametrize("threshold", [0.4, None])
def test_the_threshold_comes_from_the_promise_unless_there_is_a_number(
    tiny_model, tmp_path, threshold
):
    prompt = {"format": "cloze", "max_length": 64}
    kept = Promise(0.1, 0.95, threshold, 200, 50, 1, 0.09)
    calibration = {"temperature": 2.0, "prompt": prompt, "policy": dataclasses.asdict(kept)}
    write_json(tmp_path / "calibration.json", calibration)
    promised = Answerer.load(tiny_model, tmp_path / "calibration.json")
    assert promised.threshold.promise == kept
    for found in promised.answer(QUESTIONS, CHOICES):
        assert found.abstain == (threshold is None or found.confidence < threshold)
    own = Answerer.load(tiny_model, tmp_path / "calibration.json", abstain_below=0.0)
    assert own.threshold.promise is None and not any(
        a.abstain for a in own.answer(QUESTIONS, CHOICES)
    )


def test_a_question_without_choices_has_those_that_all_questions_shared(answerer):
    shared = dataclasses.replace(answerer, common_choices=CHOICES[0])
    assert shared.answer(QUESTIONS, [None, CHOICES[1]]) == answerer.answer(QUESTIONS, CHOICES)
    with pytest.raises(DataValidationError, match=r"question 2 .*live.* has no choices"):
        answerer.answer(QUESTIONS, [CHOICES[0], None])


@pytest.mark.parametrize(
    ("question", "choices", "problem"),
    [
        (QUESTIONS[1], ["in a cave"], "has 1 choice;"),
        (QUESTIONS[1], [None, "in a den"], "choice 1 must be text, not None"),
        (QUESTIONS[1], ["in a den", float("nan")], "choice 2 must be text, not nan"),
        (QUESTIONS[1], ["in a den", " \n"], "choice 2 is empty"),
        (QUESTIONS[1], "in a den", "choices must be a list of texts, not 'in a den'"),
        (QUESTIONS[1], {"A": "in a den", "B": "x"}, "choices must be a list of texts"),
        (QUESTIONS[1], ["in a den", "\ud83d"], "choice 2 holds half a character"),
        (None, CHOICES[1], "the question must be text, not None"),
        (float("nan"), CHOICES[1], "the question must be text, not nan"),
        ("  ", CHOICES[1], "the question is empty"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_row(answerer, question, choices, problem):
    with pytest.raises(DataValidationError, match=f"question 2.*{problem}"):
        answerer.answer([QUESTIONS[0], question], [CHOICES[0], choices])


def test_a_served_text_is_the_one_that_training_reads(answerer, tmp_path):
    """White space around question and choices changes no answer, as it changes no example."""
    spaced = [f" {QUESTIONS[0]}\n", f"\t{QUESTIONS[1]} "]
    choices = [[f" {choice}" for choice in CHOICES[0]], [f"{choice}\n" for choice in CHOICES[1]]]
    assert answerer.answer(spaced, choices) == answerer.answer(QUESTIONS, CHOICES)
    record = {"question": spaced[0], "choices": choices[0], "answer": choices[0][0]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    dataset = DatasetSource(source="path:sources/a.jsonl", format="questions", role="train")
    [example] = read(tmp_path / "a.jsonl", dataset, "a")
    assert (example.prompt, list(example.choices)) == (QUESTIONS[0], CHOICES[0])
