"""Every family against lm-evaluation-harness: the log-likelihoods of the same texts."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from firstkd.data.prompts import Question
from firstkd.models.scoring import score_questions
from tests.firstkd.models.families import FAMILIES, VOCABULARY, tiny_model

huggingface = pytest.importorskip("lm_eval.models.huggingface")
pytestmark = pytest.mark.integration  # the extra `harness`


def tokenizer():
    words = Tokenizer(WordLevel({f"w{i}.": i for i in range(VOCABULARY)}, "w0."))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"unk_token": "w0.", "pad_token": "w0.", "bos_token": "w1.", "eos_token": "w2."}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def questions(count: int) -> list[Question]:
    """With choices of 1 to 7 tokens, behind prompts on both sides of a window of 20."""
    generator = torch.Generator().manual_seed(3)

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [Question(str(i), ids(5, 40), [ids(1, 7) for _ in range(4)], 0) for i in range(count)]


def text(ids: list[int]) -> str:
    return " ".join(f"w{i}." for i in ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_have_the_harness_log_likelihoods(family):
    from lm_eval.api.instance import Instance

    model, asked = tiny_model(family), questions(12)
    harness = huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer(), backend="causal", batch_size=4
    )
    pairs = [
        Instance("loglikelihood", {}, (text(q.prompt), " " + text(response)), index)
        for index, q in enumerate(asked)
        for response in q.responses
    ]
    expected = [found for found, _ in harness.loglikelihood(pairs, disable_tqdm=True)]
    scores = score_questions(model, asked, 6)
    lengths = torch.tensor([[len(response) for response in q.responses] for q in asked])
    torch.testing.assert_close(
        (scores * lengths).flatten(), torch.tensor(expected), rtol=0, atol=5e-5
    )
