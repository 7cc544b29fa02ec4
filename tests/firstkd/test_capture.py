import pytest
import torch

from firstkd import objective
from firstkd.capture import capture
from firstkd.knowledge import KnowledgeStore
from firstkd.models import load_model
from firstkd.prompts import Question
from firstkd.settings import ExtractSettings

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4] * 9, [[21, 22, 23, 2]], 0),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
]


def captured(model, folder, **changes):
    settings = ExtractSettings(top_k=5, micro_batch_size=2, shard_examples=2)
    capture(model, QUESTIONS, settings.model_copy(update=changes), folder, identity={})
    return KnowledgeStore(folder / "token"), KnowledgeStore(folder / "choice")


@pytest.fixture
def model(tiny_model):
    return load_model(tiny_model, "fp32").eval()


def dense(model, prompt, response):
    """Log-softmax [L, V] over the vocabulary at each token of the response."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("chunk_rows", [objective.CHUNK_ROWS, 3])
def test_token_decisions_are_the_dense_top_k(model, tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setattr(objective, "CHUNK_ROWS", chunk_rows)
    store, _ = captured(model, tmp_path)
    for number, question in enumerate(QUESTIONS):
        response = question.responses[question.gold]
        expected = dense(model, question.prompt, response)
        found = store.of_examples(torch.tensor([number]))
        top = expected.topk(5)
        assert len(found) == len(response)
        torch.testing.assert_close(found.top_logprobs, top.values, atol=4e-3, rtol=0)
        torch.testing.assert_close(expected.gather(-1, found.top_ids), top.values)
        tail = 1 - top.values.exp().sum(-1)
        torch.testing.assert_close(found.tail_mass, tail, atol=1e-3, rtol=0)
        gold = expected[range(len(response)), response]
        torch.testing.assert_close(found.gold_logprob, gold, atol=4e-3, rtol=0)


def test_choice_decisions_are_the_softmax_of_mean_log_probabilities(model, tmp_path):
    _, store = captured(model, tmp_path)
    assert len(store.of_examples(torch.tensor([1]))) == 0  # open text has no choices
    for number in (0, 2):
        question = QUESTIONS[number]
        scores = []
        for response in question.responses:
            logprobs = dense(model, question.prompt, response)
            scores.append(logprobs[range(len(response)), response].mean())
        expected = torch.stack(scores).log_softmax(-1)
        found = store.of_examples(torch.tensor([number]))
        torch.testing.assert_close(found.top_logprobs[0, : len(scores)], expected)
        assert (found.top_logprobs[0, len(scores) :] == -torch.inf).all()
        torch.testing.assert_close(found.gold_logprob[0], expected[question.gold])


def test_the_same_questions_give_the_same_bytes(model, tmp_path):
    captured(model, tmp_path / "first")
    captured(model, tmp_path / "second")
    first, second = tmp_path / "first", tmp_path / "second"
    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(files) == 6  # two shards and a manifest of each kind
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()
