import pytest
import torch

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import OutOfMemoryError
from firstkd.models import head as objective
from firstkd.models.choice_scores import choice_scores
from firstkd.models.folders import load_model
from firstkd.models.scoring import ResponseScorer, score_questions, score_tokens
from firstkd.models.self_test import plain_score

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


def test_kept_numbers_come_from_a_float32_head_on_bfloat16_weights(tiny_model):
    """Not from logits that were rounded to bfloat16 before they were widened."""
    model = load_model(tiny_model, "bf16").eval()
    model.lm_head.weight.data *= 40  # logits as large as a real model's
    found = score_questions(model, QUESTIONS, 1)
    scorer = ResponseScorer(model)
    with torch.inference_mode():
        for i, question in enumerate(QUESTIONS):
            batch = pack(QUESTIONS, [i])
            hidden = scorer.hidden(batch)
            logits = hidden.double() @ model.lm_head.weight.double().T
            logprobs = logits.log_softmax(-1)[batch.rows_M, batch.targets_M]
            exact = choice_scores(logprobs, batch.response_of_M, batch.choice_mask_BC)[0]
            rounded = scorer(batch).logprobs_M
            off = choice_scores(rounded, batch.response_of_M, batch.choice_mask_BC)[0]
            count = len(question.responses)
            assert (found[i, :count] - exact).abs().max() < 1e-4
            assert (off - exact).abs().max() > 1e-3
    tokens = score_tokens(model, QUESTIONS[1:], 1)
    with torch.inference_mode():
        batch = pack(QUESTIONS, [1])
        logits = scorer.hidden(batch).double() @ model.lm_head.weight.double().T
    best = logits.softmax(-1).amax(-1).float()
    torch.testing.assert_close(tokens.confidence_T, best, rtol=1e-4, atol=1e-6)


def test_training_keeps_the_models_own_head(tiny_model):
    model = load_model(tiny_model, "bf16")
    assert ResponseScorer(model).head.weight is model.lm_head.weight
    assert ResponseScorer(model, exact=True).head.weight.dtype == torch.float32
    assert [*ResponseScorer(model, exact=True).head.parameters()] == []


def test_scoring_that_runs_out_of_memory_names_the_settings_to_lower(model):
    question = Question("long", [5] * 300_000, [[6], [7]], 0)  # a mask of 360 GB
    with pytest.raises(
        OutOfMemoryError, match=r"scoring questions; lower the stage's micro_batch_size or "
    ):
        score_questions(model, [question], 1)


def test_seventy_seven_labels_take_one_pass_over_the_shared_prompt(model):
    """The pass holds the prompt once and every label's tokens; each scores as it does alone."""
    draw = torch.Generator().manual_seed(0)
    labels = [torch.randint(3, 300, (1 + i % 3,), generator=draw).tolist() for i in range(77)]
    question = Question("a", torch.randint(3, 300, (40,), generator=draw).tolist(), labels, 0)
    seen = []

    def count(_, __, more):
        seen.append(more["input_ids"].shape)

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    found = score_questions(model, [question], batch_size=1)
    assert seen == [(1, 40 + sum(map(len, labels)))]
    expected = [plain_score(model, question.prompt, label) for label in labels]
    torch.testing.assert_close(found[0], torch.tensor(expected), atol=1e-4, rtol=0)
