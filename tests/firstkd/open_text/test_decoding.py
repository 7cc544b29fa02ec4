"""Decoded ids against a plain loop without a cache, and draws against the softmax."""

from collections import Counter

import pytest
import torch

from firstkd.models.folders import load_model
from firstkd.models.scoring import ScoringHead
from firstkd.open_text.decoding import Draw, decode

PROMPTS = [[1, 50, 60, 70], [1, 90], [1, 200, 201, 202, 203, 204, 205], [1, 33, 34]]
STOP = frozenset({2})


@pytest.fixture(scope="module")
def model(talker):
    return load_model(talker, "fp32")


def greedy(model, prompt, length):
    """The most probable token at each place, each by a forward pass over all before it."""
    ids = [*prompt]
    with torch.inference_mode():
        while len(ids) < len(prompt) + length and ids[-1] not in STOP:
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def written(model, draws, batch_size=8, batch_tokens=1000, length=12):
    texts = decode(model, draws, STOP, length, batch_size, batch_tokens)
    return [text.ids for text in texts]


@pytest.mark.parametrize(("batch_size", "batch_tokens"), [(8, 1000), (1, 1000), (8, 40)])
def test_greedy_decoding_is_that_of_a_plain_loop(model, batch_size, batch_tokens):
    draws = [Draw(prompt, 0, 0, seed=0) for prompt in PROMPTS]
    found = written(model, draws, batch_size, batch_tokens)
    assert found == [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len(set(map(len, found))) > 1 or all(ids[-1] in STOP for ids in found)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_probabilities_are_those_of_a_plain_pass_over_the_text(model, temperature, batch_size):
    draws = [Draw(prompt, temperature, 0, seed=0) for prompt in PROMPTS]
    head = ScoringHead(model, exact=True)
    found = decode(model, draws, STOP, 12, batch_size, 1000, head=head)
    for prompt, text in zip(PROMPTS, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + text.ids]), use_cache=False).logits[0].double()
        each = logits.softmax(-1)[len(prompt) - 1 : -1]
        plain = each.gather(1, torch.tensor(text.ids)[:, None])[:, 0].numpy()
        assert text.probabilities == pytest.approx(plain, abs=1e-5)


def test_a_models_own_defaults_play_no_part_and_stay_its_own(model):
    before = written(model, [Draw(PROMPTS[0], 0, 0, seed=0)])
    own = model.generation_config
    own.repetition_penalty = 1e6
    try:
        assert written(model, [Draw(PROMPTS[0], 0, 0, seed=0)]) == before
        assert model.generation_config is own
    finally:
        own.repetition_penalty = None


def test_padding_rows_of_the_head_are_never_written(talker):
    model = load_model(talker, "fp32")
    model.tokenizer_ids = 40
    for ids in written(model, [Draw(prompt, 1.0, 0, seed=0) for prompt in PROMPTS]):
        assert max(ids) < 40


def test_a_draw_is_the_same_in_any_batch_and_another_by_another_number_or_seed(model):
    draws = [Draw(prompt, 1.0, n, seed=0) for prompt in PROMPTS for n in range(3)]
    together = written(model, draws)
    assert together == [written(model, [draw])[0] for draw in draws]
    assert len({tuple(ids) for ids in together[:3]}) > 1
    assert written(model, [Draw(PROMPTS[0], 1.0, 0, seed=1)])[0] != together[0]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_draws_come_as_often_as_the_softmax_says(model, temperature):
    count = 3000
    draws = [Draw(PROMPTS[0], temperature, n, seed=0) for n in range(count)]
    first = Counter(ids[0] for ids in written(model, draws, 500, 10**6, length=1))
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1)
    for token in expected.topk(4).indices.tolist():
        share = float(expected[token])
        spread = 4 * (share * (1 - share) / count) ** 0.5
        assert first[token] / count == pytest.approx(share, abs=spread)
