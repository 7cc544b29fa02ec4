"""The prompt of a model that answers in its own words, and the tokens that end its answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from firstkd.data.examples import Example
from firstkd.data.prompts import Question, encode
from firstkd.data.settings import PromptSettings


def open_questions(
    examples: Sequence[Example], tokenizer: Any, prompt: PromptSettings, max_new_tokens: int
) -> list[Question]:
    """Return the examples' prompts without responses, leaving room for an answer."""
    cut = prompt.model_copy(update={"max_length": prompt.max_length - max_new_tokens})
    open_ended = [
        replace(example, response="", choices=None, answer_index=None) for example in examples
    ]
    return encode(open_ended, tokenizer, cut)


def stop_tokens(model: PreTrainedModel, tokenizer: Any, prompt: PromptSettings) -> frozenset[int]:
    """Return the token that ends every training response, and those in the generation config."""
    [shown] = encode([Example("", "a", "a", None, None, "")], tokenizer, prompt)
    named: int | list[int] | None = model.generation_config.eos_token_id
    named = [named] if isinstance(named, int) else named or []
    return frozenset([shown.responses[0][-1], *named])
