import copy

import pytest
import torch

from firstkd.data.prompts import Question
from firstkd.files import sha256_of
from firstkd.models import head as objective
from firstkd.models.folders import load_model
from firstkd.signals.capture import _top_k, capture, finish
from firstkd.signals.knowledge import KnowledgeStore
from firstkd.signals.settings import ExtractSettings
from firstkd.train.distributed import Ranks

VOCABULARY = 400
QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4] * 9, [[21, 22, 23, 2]], 0),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
]


def captured(model, folder, **changes):
    settings = extract_settings(**changes)
    finish(folder, capture(model, QUESTIONS, settings, VOCABULARY, folder, Ranks()), identity={})
    return KnowledgeStore(folder / "token"), KnowledgeStore(folder / "choice")


def extract_settings(**changes):
    settings = {
        "top_k": 5,
        "tail_nodes": 0,
        "micro_batch_size": 2,
        "micro_batch_tokens": 8192,
        "shard_examples": 2,
    }
    return ExtractSettings(**{**settings, "processes": 1, "min_top_k_mass": 0, **changes})


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


def test_a_response_without_tokens_has_no_token_decisions(model, tmp_path):
    questions = [Question("empty", [5, 6], [[]], 0), Question("one", [5, 6], [[7]], 0)]
    stores = capture(model, questions, extract_settings(), VOCABULARY, tmp_path, Ranks())
    finish(tmp_path, stores, identity={})
    store = KnowledgeStore(tmp_path / "token")
    assert len(store.of_examples(torch.tensor([0]))) == 0
    assert len(store.of_examples(torch.tensor([0, 1]))) == 1


def test_rows_that_pad_the_head_are_no_tokens(model, tmp_path):
    store, _ = captured(model, tmp_path / "whole")
    padded = load_padded(model)
    found, _ = captured(padded, tmp_path / "padded")
    torch.testing.assert_close(found.decoded().top_logprobs, store.decoded().top_logprobs)
    assert int(found.decoded().top_ids.max()) < VOCABULARY


def load_padded(model):
    """The model with 64 rows more in its head, each of which would win every comparison."""
    padded = copy.deepcopy(model)
    padded.resize_token_embeddings(VOCABULARY + 64, mean_resizing=False)
    hidden = padded.lm_head.weight[:VOCABULARY].detach()
    padded.lm_head.weight.data[VOCABULARY:] = 50 * hidden[:64]
    return padded


@pytest.mark.parametrize("size", [3, 400, 1000, 49_152, 49_200])
def test_top_k_is_torchs(size):
    values = torch.randn(6, size, generator=torch.Generator().manual_seed(size))
    found, ids = _top_k(values, 3)
    expected = values.topk(3)
    assert torch.equal(found, expected.values)
    assert torch.equal(values.gather(1, ids), expected.values)


def test_what_is_there_is_kept_and_the_rest_is_captured(model, tmp_path):
    captured(model, tmp_path / "whole")
    captured(model, tmp_path / "part")
    kept = tmp_path / "part/choice/00000.safetensors"
    (tmp_path / "part/token/00001.safetensors").unlink()
    before = kept.stat().st_mtime_ns
    captured(model, tmp_path / "part")
    assert kept.stat().st_mtime_ns == before
    assert sha256_of(tmp_path / "part") == sha256_of(tmp_path / "whole")


def test_two_ranks_write_what_one_writes(model, tmp_path):
    captured(model, tmp_path / "one")
    for rank in (1, 0):
        stores = capture(
            model, QUESTIONS, extract_settings(), VOCABULARY, tmp_path / "two", Ranks(rank, 2)
        )
    finish(tmp_path / "two", stores, identity={})
    assert sha256_of(tmp_path / "two") == sha256_of(tmp_path / "one")
