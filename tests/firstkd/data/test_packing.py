import numpy as np
import pytest
import torch

from firstkd.data.packing import (
    batches_by_length,
    pack,
    packed_length,
    shuffled_batches,
    unpack,
)
from firstkd.data.prompts import Question
from firstkd.models.choice_scores import choice_scores
from firstkd.models.folders import load_model
from firstkd.models.scoring import ResponseScorer

QUESTIONS = [
    Question("a", [5, 6, 7], [[8], [9, 10], [11, 12, 13]], 1),
    Question("b", [5, 9], [[20, 21, 22, 23], [24]], 0),
    Question("c", [30, 31, 32, 33, 34, 35], [[36, 37], [38, 39]], 1),
]


@pytest.fixture
def model(tiny_model):
    return load_model(tiny_model, "fp32")


def scores_of(model, questions, index):
    batch = pack(questions, index)
    logprobs = ResponseScorer(model)(batch).logprobs_M
    return choice_scores(logprobs, batch.response_of_M, batch.choice_mask_BC)


def test_packed_scores_are_those_of_separate_sequences(model):
    with torch.no_grad():
        packed = scores_of(model, QUESTIONS, [0, 1, 2])
        for b, question in enumerate(QUESTIONS):
            for c, response in enumerate(question.responses):
                ids = torch.tensor([question.prompt + response])
                logprobs = model(ids, use_cache=False).logits[0].log_softmax(-1)
                start = len(question.prompt)
                expected = sum(
                    logprobs[start + i - 1, token] for i, token in enumerate(response)
                ) / len(response)
                assert packed[b, c] == pytest.approx(float(expected), abs=1e-5)


def test_missing_choices_score_minus_infinity(model):
    with torch.no_grad():
        scores = scores_of(model, QUESTIONS, [1, 0])
    assert scores[0, 2] == -torch.inf
    assert torch.isfinite(scores[1]).all()


def test_open_text_needs_no_packing_and_scores_the_same(model):
    alone = [Question(q.id, q.prompt, [q.responses[0]], 0) for q in QUESTIONS]
    assert not pack(alone, [0, 1, 2]).is_packed
    with torch.no_grad():
        torch.testing.assert_close(
            scores_of(model, alone, [0, 1, 2])[:, 0], scores_of(model, QUESTIONS, [0, 1, 2])[:, 0]
        )


def test_a_batch_says_which_tokens_are_right(model):
    batch = pack(QUESTIONS, [0, 1])
    assert batch.targets_M[batch.is_gold_M].tolist() == [9, 10, 20, 21, 22, 23]
    assert batch.tokens == sum(packed_length(question) for question in QUESTIONS[:2])


def test_shuffled_batches_hold_each_question_once_and_repeat_with_the_seed():
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 50, size=203)
    questions = [Question(str(i), [1] * n, [[2]], 0) for i, n in enumerate(lengths)]
    packed = [*map(packed_length, questions)]
    first = shuffled_batches(packed, 8, 1000, np.random.default_rng(3))
    assert sorted(i for batch in first for i in batch) == list(range(203))
    assert first == shuffled_batches(packed, 8, 1000, np.random.default_rng(3))
    assert first != shuffled_batches(packed, 8, 1000, np.random.default_rng(4))
    padded = sum(len(b) * max(packed[i] for i in b) for b in first)
    assert padded < 1.2 * sum(packed)


def test_batches_by_length_start_with_the_longest():
    batches = batches_by_length(QUESTIONS, 2)
    assert batches == [[2, 0], [1]]


def test_batches_by_length_keep_to_their_tokens():
    questions = [Question(str(n), [1] * n, [[2]], 0) for n in (3, 99, 40, 39, 12, 9)]
    batches = batches_by_length(questions, 3, batch_tokens=81)
    # 100 is more than 81 and alone; 2 × 41 is more, 2 × 40 is not; three at most
    assert batches == [[1], [2], [3, 4], [5, 0]]
    assert [len(batch) for batch in batches_by_length(questions, 3, 10_000)] == [3, 3]


@pytest.mark.parametrize(("batch_size", "batch_tokens"), [(8, 4096), (32, 8192)])
def test_long_texts_of_uneven_length_are_hardly_padded(batch_size, batch_tokens):
    lengths = np.random.default_rng(0).lognormal(6, 0.6, 2000).clip(30, 3000).astype(int)
    generator = np.random.default_rng(1)
    batches = shuffled_batches(lengths.tolist(), batch_size, batch_tokens, generator)
    padded = [len(batch) * lengths[batch].max() for batch in batches]
    assert max(padded) <= batch_tokens
    assert 1 - lengths.sum() / sum(padded) < 0.06
    order = generator.permutation(2000)
    at_random = (order[i : i + batch_size] for i in range(0, 2000, batch_size))
    padded = [len(batch) * lengths[batch].max() for batch in at_random]
    assert 1 - lengths.sum() / sum(padded) > 0.5


def test_the_positions_of_padding_go_on():
    batch = pack([q.gold_only() for q in QUESTIONS], [0, 2])
    assert batch.position_ids_BL.tolist() == [[*range(8)]] * 2
    assert batch.is_token_BL.sum(-1).tolist() == [5, 8]


def test_unpacked_rows_hold_the_prompt_and_one_response_each():
    batch = pack(QUESTIONS, [1, 0])
    rows, places = unpack(batch)
    positions = places[batch.positions_N]
    expected = [q.prompt + r for q in (QUESTIONS[1], QUESTIONS[0]) for r in q.responses]
    assert [row[: len(ids)] for row, ids in zip(rows.tolist(), expected, strict=True)] == expected
    # of each supervised position, what precedes it is the same
    width = batch.input_ids_BL.shape[1]
    for packed, alone in zip(batch.positions_N.tolist(), positions.tolist(), strict=True):
        place = int(batch.position_ids_BL[packed // width, packed % width])
        assert alone % rows.shape[1] == place
        assert rows.flatten()[alone] == batch.input_ids_BL.flatten()[packed]


def test_a_question_without_responses_is_packed_as_its_prompt():
    batch = pack([Question("unlabelled", [5, 6], [], None)], [0])
    assert batch.input_ids_BL.tolist() == [[5, 6]] and len(batch.rows_M) == 0
