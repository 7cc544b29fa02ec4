"""What a model writes and how sure it is of it, against plain forward passes."""

import numpy as np
import pytest
import torch

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import score_questions
from firstkd.open_text.confidence import CLAIMED, VERDICTS
from firstkd.open_text.metrics import METRICS
from firstkd.open_text.settings import OpenTextSettings
from firstkd.open_text.writer import Writer
from tests.tiny import open_questions

PROMPT = PromptSettings(format="cloze", max_length=96)
EXAMPLES = open_questions(12, seed=1)
SETTINGS = {
    "max_new_tokens": 12,
    "temperature": 0,
    "metric": "token_f1",
    "right_from": 0.5,
    "recalibrate": "platt",
}
AGREEMENT = {"kind": "agreement", "samples": 4, "temperature": 1.0}


@pytest.fixture(scope="module")
def model(talker):
    return load_model(talker, "fp32"), load_tokenizer(talker)


def writer_of(model, confidence, **changed):
    settings = OpenTextSettings.model_validate({**SETTINGS, "confidence": confidence, **changed})
    return Writer(*model, PROMPT, settings, seed=0)


def plain_probabilities(model, example, text):
    """Of each token of an answer and its end, by one forward pass over prompt and answer."""
    network, tokenizer = model
    full = Example("x", example.prompt, text, None, None, "x")
    [question] = encode([full], tokenizer, PROMPT)
    ids = question.prompt + question.responses[0]
    with torch.inference_mode():
        probabilities = network(torch.tensor([ids])).logits[0].double().softmax(-1)
    start = len(question.prompt)
    return np.array([float(probabilities[i - 1, ids[i]]) for i in range(start, len(ids))])


def test_it_answers_some_questions_right_and_stops_by_itself(model):
    answers, confidence = writer_of(model, {"kind": "mean_probability"}).answer(EXAMPLES)
    right = [a.text == e.response for a, e in zip(answers, EXAMPLES, strict=True)]
    assert any(right) and len(confidence) == len(EXAMPLES)
    assert all(0 < sure < 1 for sure in confidence)


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("mean_probability", lambda p: np.exp(np.log(p).mean())),
        ("min_probability", lambda p: p.min()),
    ],
)
def test_the_confidence_is_that_of_the_answers_tokens(model, kind, of):
    answers, confidence = writer_of(model, {"kind": kind}).answer(EXAMPLES)
    ended = [i for i, answer in enumerate(answers) if len(answer.probabilities) < 12]
    assert ended
    for i in ended:
        plain = plain_probabilities(model, EXAMPLES[i], answers[i].text)
        np.testing.assert_allclose(answers[i].probabilities, plain, rtol=1e-4)
        assert confidence[i] == pytest.approx(of(plain), rel=1e-4)


def test_agreement_is_the_share_of_draws_that_say_the_same(model):
    writer = writer_of(model, AGREEMENT)
    answers, confidence = writer.answer(EXAMPLES)
    drawn = writer.texts(EXAMPLES, 1.0, range(1, 5))
    assert len({text for draws in drawn for text in draws}) > 1
    for answer, draws, sure in zip(answers, drawn, confidence, strict=True):
        agreed = sum(METRICS["token_f1"](draw, answer.text) >= 0.5 for draw in draws)
        assert sure == (agreed + 1) / 6
    np.testing.assert_array_equal(writer.answer(EXAMPLES)[1], confidence)


def test_p_true_is_the_probability_of_yes_against_no(model):
    answers, confidence = writer_of(model, {"kind": "p_true"}).answer(EXAMPLES)
    asked = [
        Example("x", f"{e.prompt}\n{CLAIMED.format(a.text)}", "", VERDICTS, None, "x")
        for e, a in zip(EXAMPLES, answers, strict=True)
    ]
    scores = score_questions(model[0], encode(asked, model[1], PROMPT), 4)
    np.testing.assert_allclose(confidence, scores.softmax(-1)[:, 0].numpy(), rtol=1e-4)


def test_an_answer_that_is_too_long_is_cut_and_a_long_prompt_leaves_it_room(model):
    writer = writer_of(model, {"kind": "mean_probability"}, max_new_tokens=2)
    long = Example("x", "Where does the fox live? " * 40, "", None, None, "x")
    [answer], _ = writer.answer([long])
    assert len(answer.probabilities) <= 2
