import copy

import pytest
import torch

from firstkd.data.examples import Example, write_examples
from firstkd.data.prompts import Question
from firstkd.files import sha256_of
from firstkd.models import head as objective
from firstkd.models.folders import load_model
from firstkd.signals.capture import Capture
from firstkd.signals.settings import CaptureSettings
from firstkd.signals.top_k import _top_k
from firstkd.train.distributed import Ranks
from tests.firstkd.signals.stores import (
    CHOICES,
    STATES,
    TOKENS,
    VOCABULARY,
    capture_into,
    decisions_of,
)

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("open", [4] * 9, [[21, 22, 23, 2]], 0),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
]
BOTH = pytest.mark.parametrize("signal", [TOKENS, CHOICES], ids=lambda signal: signal.kind)
ALL = pytest.mark.parametrize("signal", [TOKENS, CHOICES, STATES], ids=lambda signal: signal.kind)


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
    store = capture_into(tmp_path, TOKENS, model, QUESTIONS)
    for number, question in enumerate(QUESTIONS):
        response = question.responses[question.gold]
        expected = dense(model, question.prompt, response)
        found = decisions_of(TOKENS, store, number)
        top = expected.topk(5)
        assert len(found) == len(response)
        torch.testing.assert_close(found.top_logprobs, top.values, atol=4e-3, rtol=0)
        torch.testing.assert_close(expected.gather(-1, found.top_ids), top.values)
        tail = 1 - top.values.exp().sum(-1)
        torch.testing.assert_close(found.tail_mass, tail, atol=1e-3, rtol=0)
        gold = expected[range(len(response)), response]
        torch.testing.assert_close(found.gold_logprob, gold, atol=4e-3, rtol=0)


def test_choice_decisions_are_the_softmax_of_mean_log_probabilities(model, tmp_path):
    store = capture_into(tmp_path, CHOICES, model, QUESTIONS)
    assert len(decisions_of(CHOICES, store, 1)) == 0  # open text has no choices
    for number in (0, 2):
        question = QUESTIONS[number]
        scores = []
        for response in question.responses:
            logprobs = dense(model, question.prompt, response)
            scores.append(logprobs[range(len(response)), response].mean())
        expected = torch.stack(scores).log_softmax(-1)
        found = decisions_of(CHOICES, store, number)
        torch.testing.assert_close(found.top_logprobs[0], expected)
    together = decisions_of(CHOICES, store, 2, 1, 0)
    assert together.top_logprobs.shape == (2, 3)
    assert together.top_logprobs[0, 2] == -torch.inf  # the question has two


def test_hidden_states_are_those_of_every_prompt_and_response(model, tmp_path):
    store = capture_into(tmp_path, STATES, model, QUESTIONS)
    for number, question in enumerate(QUESTIONS):
        texts = [question.prompt + response for response in question.responses]
        with torch.inference_mode():
            states = [model.base_model(torch.tensor([ids])).last_hidden_state[0] for ids in texts]
        start = len(question.prompt)
        expected = torch.cat([states[0][:start], *(each[start:] for each in states)])
        found = store.of_examples(torch.tensor([number]))
        assert found.counts.tolist() == [STATES.records_of(question)] == [len(expected)]
        # within the eight bits of bfloat16
        torch.testing.assert_close(found.columns["state"].float(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("signal", [TOKENS, STATES], ids=lambda signal: signal.kind)
def test_a_shard_of_questions_that_nobody_has_answered(model, tmp_path, signal):
    unanswered = [Question(name, [5, 6], [[7], [8, 9]], None) for name in "ab"]
    store = capture_into(tmp_path, signal, model, [*QUESTIONS[:2], *unanswered])
    expected = [signal.records_of(question) for question in [*QUESTIONS[:2], *unanswered]]
    assert store.whole().counts.tolist() == expected
    few = Question("no choices", [5, 6], [], None)
    store = capture_into(tmp_path / "few", signal, model, [few, few])
    assert store.whole().counts.tolist() == [signal.records_of(few)] * 2


@BOTH
def test_each_question_has_the_records_and_decisions_that_are_expected_of_it(
    model, tmp_path, signal
):
    store = capture_into(tmp_path, signal, model, QUESTIONS)
    assert store.whole().counts.tolist() == [signal.records_of(q) for q in QUESTIONS]
    decisions = signal.decisions(store.whole(), store.facts)
    assert len(decisions) == sum(map(signal.decisions_of, QUESTIONS))


def test_right_tokens_are_in_the_order_of_the_decisions(model, tmp_path):
    store = capture_into(tmp_path, TOKENS, model, QUESTIONS)
    decisions = TOKENS.decisions(store.whole(), store.facts)
    right = [9, 10, 21, 22, 23, 2, 20, 21, 22, 23]
    expected = decisions.top_ids == torch.tensor(right)[:, None]
    assert torch.equal(TOKENS.is_right(decisions, [], QUESTIONS), expected)


@ALL
def test_the_same_questions_give_the_same_bytes(model, tmp_path, signal):
    for name in ("first", "second"):
        capture_into(tmp_path / name, signal, model, QUESTIONS)
    assert len(list((tmp_path / "first").iterdir())) == 3  # two shards and a manifest
    assert sha256_of(tmp_path / "first") == sha256_of(tmp_path / "second")


def test_a_response_without_tokens_has_no_token_decisions(model, tmp_path):
    questions = [Question("empty", [5, 6], [[]], 0), Question("one", [5, 6], [[7]], 0)]
    store = capture_into(tmp_path, TOKENS, model, questions)
    assert store.whole().counts.tolist() == [0, 1]
    assert len(decisions_of(TOKENS, store, 0)) == 0


def test_rows_that_pad_the_head_are_no_tokens(model, tmp_path):
    expected, found = (
        TOKENS.decisions(store.whole(), store.facts)
        for store in (
            capture_into(tmp_path / "whole", TOKENS, model, QUESTIONS),
            capture_into(tmp_path / "padded", TOKENS, padded(model), QUESTIONS),
        )
    )
    torch.testing.assert_close(found.top_logprobs, expected.top_logprobs)
    assert int(found.top_ids.max()) < VOCABULARY


def padded(model):
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


@ALL
def test_what_is_there_is_kept_and_the_rest_is_captured(model, tmp_path, signal):
    capture_into(tmp_path / "whole", signal, model, QUESTIONS)
    capture_into(tmp_path / "part", signal, model, QUESTIONS)
    kept = tmp_path / "part/00000.safetensors"
    (tmp_path / "part/00001.safetensors").unlink()
    before = kept.stat().st_mtime_ns
    capture_into(tmp_path / "part", signal, model, QUESTIONS)
    assert kept.stat().st_mtime_ns == before
    assert sha256_of(tmp_path / "part") == sha256_of(tmp_path / "whole")


@ALL
def test_two_ranks_write_what_one_writes(model, tmp_path, signal):
    capture_into(tmp_path / "one", signal, model, QUESTIONS)
    capture_into(tmp_path / "two", signal, model, QUESTIONS, ranks=(Ranks(1, 2), Ranks(0, 2)))
    assert sha256_of(tmp_path / "two") == sha256_of(tmp_path / "one")


def test_files_are_captured_a_part_at_a_time_as_if_at_once(model, tmp_path, monkeypatch):
    """A part is whole shards, of two examples here, and goes on in the next file."""
    monkeypatch.setattr("firstkd.signals.capture.CHUNK", 5)
    written = [Example(f"e{i}", f"Where is {i}?", "here", None, None, "made") for i in range(7)]
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, examples in zip(files, (written[:3], written[3:]), strict=True):
        write_examples(file, examples)
    settings = CaptureSettings(
        precision="fp32", micro_batch_size=2, micro_batch_tokens=8192, shard_examples=2
    )
    run = Capture(TOKENS, VOCABULARY, settings, Ranks())
    parts = [(first, [e.id for e in examples]) for first, examples in run.parts(files)]
    assert parts == [(0, ["e0", "e1", "e2", "e3"]), (2, ["e4", "e5", "e6"])]
    questions = QUESTIONS * 2
    for first, part in ((0, slice(0, 4)), (2, slice(4, 6))):
        run.write(model, questions[part], range(6)[part], tmp_path / "parts", first)
    run.finish(tmp_path / "parts", {})
    capture_into(tmp_path / "once", TOKENS, model, questions)
    assert sha256_of(tmp_path / "parts") == sha256_of(tmp_path / "once")


def test_the_mass_that_is_kept_is_described_and_too_little_of_it_is_warned_of(model, tmp_path):
    store = capture_into(tmp_path, TOKENS, model, QUESTIONS)
    described = TOKENS.describe(store)
    masses = [*described["cumulative_mass"].values()]
    kept = decisions_of(TOKENS, store, 0, 1, 2).top_logprobs.exp().cumsum(-1).mean(0)
    assert masses == pytest.approx(kept.tolist(), rel=1e-5)
    assert described["records"] == 10 and described["dense_bytes"] == 10 * VOCABULARY * 2
    lenient = TOKENS.model_copy(update={"min_mass": masses[-1]})
    assert lenient.warning(described) is None
    strict = TOKENS.model_copy(update={"min_mass": masses[-1] + 0.01})
    assert "5 tokens hold only" in strict.warning(described)
    assert "raise select.k" in strict.warning(described)
