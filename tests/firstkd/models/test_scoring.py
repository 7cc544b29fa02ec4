import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.models import head as objective
from firstkd.models.folders import load_model
from firstkd.models.scoring import ResponseScorer, score_tokens

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4] * 9, [[21, 22, 23, 2]], 0),
]


@pytest.fixture
def model(tiny_model):
    return load_model(tiny_model, "fp32").eval()


@pytest.mark.parametrize("chunk_rows", [objective.CHUNK_ROWS, 2])
def test_tokens_are_scored_as_by_the_dense_softmax(model, monkeypatch, chunk_rows):
    monkeypatch.setattr(objective, "CHUNK_ROWS", chunk_rows)
    found = score_tokens(model, QUESTIONS, batch_size=2)
    expected = []
    for question in reversed(QUESTIONS):  # the longest first
        response = question.responses[question.gold]
        with torch.inference_mode():
            logits = model(torch.tensor([question.prompt + response]), use_cache=False).logits[0]
        probabilities = logits[len(question.prompt) - 1 : -1].softmax(-1)
        best, predicted = probabilities.max(-1)
        gold = probabilities[range(len(response)), response]
        expected.append((best, predicted == torch.tensor(response), gold))
    best, correct, gold = (torch.cat(part) for part in zip(*expected, strict=True))
    torch.testing.assert_close(found.confidence_T, best)
    torch.testing.assert_close(found.probability_T, gold)
    assert found.correct_T.tolist() == correct.tolist()
    assert found.example_T.tolist() == [1] * 4 + [0] * 2


def test_a_models_soft_cap_bounds_its_logits(model):
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)) * 100
    plain = ResponseScorer(model).head.logits(hidden)
    model.config.final_logit_softcapping = 3.0
    capped = ResponseScorer(model).head.logits(hidden)
    torch.testing.assert_close(capped, 3 * (plain / 3).tanh())
