"""Every family against a plain forward pass of each text, before and after it is pruned."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.errors import ArtifactError
from firstkd.models.folders import load_model
from firstkd.models.pruning import (
    block_influence,
    check_same_logits,
    cut_lists,
    keep_layers,
    logits_without,
)
from firstkd.models.scoring import ResponseScorer, score_questions
from firstkd.models.self_test import check_model, plain_score
from tests.firstkd.models.families import FAMILIES, REFUSED, VOCABULARY, tiny_model


def questions():
    """Three of different lengths, the longest two beyond the windows of 20 tokens."""
    generator = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    return [
        Question("a", ids(40), [ids(3), ids(1), ids(7)], 0),
        Question("b", ids(12), [ids(2), ids(5)], 1),
        Question("c", ids(33), [ids(4)], 0),
    ]


QUESTIONS = questions()
UNPACKED = {"lfm2", "qwen3_next", "mamba", "bloom", "falcon"}


def tokenizer():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "w0")), eos_token="w2"
    )


def assert_right(model):
    """Choice scores and the top 5 at every response's first token are those of a plain pass."""
    scores = score_questions(model, QUESTIONS, 3)
    batch = pack(QUESTIONS, [0, 1, 2])
    scorer = ResponseScorer(model, exact=True)
    with torch.inference_mode():
        logprobs_NV = scorer.head.logits(scorer.hidden(batch)).log_softmax(-1)
    row = 0
    for number, question in enumerate(QUESTIONS):
        for choice, response in enumerate(question.responses):
            expected = plain_score(model, question.prompt, response)
            assert float(scores[number, choice]) == pytest.approx(expected, abs=1e-5)
        with torch.inference_mode():
            ids = torch.tensor([question.prompt + question.responses[-1]])
            plain = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        end = row + sum(len(response) - 1 for response in question.responses)
        # the prompt's last position, and the last that predicts a token of the last response
        for ours, theirs in ((row, len(question.prompt) - 1), (end, -2)):
            if len(question.responses[-1]) == 1 and theirs == -2:
                continue
            top, found = plain[theirs].topk(5), logprobs_NV[ours].topk(5)
            assert torch.equal(top.indices, found.indices)
            torch.testing.assert_close(top.values, found.values, rtol=0, atol=1e-5)
        row = end + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_scored_right_before_and_after_it_is_pruned(family, tmp_path):
    model = tiny_model(family)
    assert ResponseScorer(model).can_pack == (family not in UNPACKED)
    assert_right(model)
    influence = block_influence(model, [q.gold_only() for q in QUESTIONS], 3)
    assert torch.isfinite(influence).all() and (influence > 1e-4).all()
    kept, probe = [0, 2, 3], torch.tensor([QUESTIONS[0].prompt])
    expected = logits_without(model, kept, probe)
    keep_layers(model, kept)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, "fp32").eval()
    assert again.config.num_hidden_layers == 3
    check_same_logits(expected, logits_without(again, range(3), probe), family)
    assert_right(again)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_would_be_scored_wrong_is_refused_by_name(family):
    model = tiny_model(family)
    with pytest.raises(ArtifactError, match=rf"{family}: scores differ by \d.*choose another"):
        check_model(model, tokenizer(), QUESTIONS)


def test_a_model_that_is_scored_right_passes(tiny_model):
    check_model(load_model(tiny_model, "fp32"), tokenizer(), QUESTIONS)


def test_a_score_that_is_not_a_number_is_noticed_wherever_it_is(tiny_model):
    model = load_model(tiny_model, "fp32")
    # if the head shared its weights with the embedding, one NaN would be in every score
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan
    found = [Question("right", [5, 6, 7], [[8]], 0), Question("wrong", [9, 6], [[8]], 0)]
    with pytest.raises(ArtifactError, match="scores differ by nan"):
        check_model(model, tokenizer(), found)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("x", [5, 400], [[6]], 0), r"example x has token id 400, but the model has only"),
        (Question("x", [5], [[6] * 513], 0), r"example x has 514 tokens, but the model has 512"),
    ],
)
def test_what_does_not_fit_the_model_is_named(tiny_model, question, message):
    with pytest.raises(ArtifactError, match=message):
        check_model(load_model(tiny_model, "fp32"), tokenizer(), [*QUESTIONS, question])


def test_a_tokenizer_without_an_end_is_named(tiny_model):
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(ArtifactError, match="llama: the tokenizer has no end-of-text token"):
        check_model(load_model(tiny_model, "fp32"), endless, QUESTIONS)


def test_a_pruned_family_whose_layers_know_their_number_is_refused(tmp_path: Path):
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    probe = torch.tensor([QUESTIONS[0].prompt])
    expected = logits_without(model, [0, 2], probe)
    keep_layers(model, [0, 2])
    model.save_pretrained(tmp_path)
    found = logits_without(load_model(tmp_path, "fp32"), range(2), probe)
    with pytest.raises(ArtifactError, match=r"gpt2: the pruned model's logits differ by"):
        check_same_logits(expected, found, "gpt2")


def test_every_list_about_layers_is_cut():
    config = {
        "layer_types": ["a", "b", "c", "d"],
        "no_rope_layers": [1, 1, 0, 1],
        "mlp_only_layers": [1, 3],
        "attn_layer_indices": [0],
        "eos_token_id": [2, 3],
        "rope_factors": [1.0, 2.0, 3.0],
    }
    assert cut_lists(config, 4, [0, 2, 3]) == {
        "layer_types": ["a", "c", "d"],
        "no_rope_layers": [1, 0, 1],
        "mlp_only_layers": [2],
        "attn_layer_indices": [0],
    }
